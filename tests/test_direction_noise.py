"""Noise on directions."""

import pytest
import torch

from fedecider import direction as algebra
from fedecider.direction import LowRank
from fedecider.direction_noise import noised


def random_update(d_out=24, d_in=40, rank=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return LowRank(
        torch.randn(d_out, rank, generator=generator), torch.randn(rank, d_in, generator=generator)
    )


def dense(pair):
    return pair.B.double() @ pair.A.double()


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def test_noise_moves_a_direction_by_sigma():
    """The change before normalising has the mean square sigma^2, for any shape and rank."""
    sigma = 0.05
    for d_out, d_in, rank in ((24, 40, 3), (60, 20, 1), (16, 16, 8)):
        whole = algebra.direction(random_update(d_out, d_in, rank))
        changes = []
        for seed in range(200):
            moved = dense(noised(whole, sigma, seeded(seed)))
            # Normalising divides by a length near 1; the part across D tells the noise apart.
            along = (moved * dense(whole)).sum()
            changes.append((moved / along - dense(whole)).square().sum().item())
        mean = sum(changes) / len(changes)
        # The part along D, one of its many coordinates, is taken out by the division.
        degrees = rank * (d_out + d_in)
        assert mean == pytest.approx(sigma**2, rel=4 / degrees**0.5 + 0.02)


@pytest.mark.parametrize("kind", algebra.NORM_KINDS)
def test_noised_directions_have_norm_one_and_the_same_rank(kind):
    whole = algebra.direction(random_update(), kind)
    moved = noised(whole, 0.7, seeded(1), kind)
    assert torch.allclose(algebra.norm(moved, kind), torch.ones(()).double(), atol=1e-12)
    assert moved.rank == whole.rank and moved.B.dtype == torch.float64
    again = algebra.direction(moved, kind)  # canonical: taken apart again it is the same
    assert torch.allclose(again.B, moved.B) and torch.allclose(again.A, moved.A)


def test_noise_depends_on_the_generator_and_not_on_the_factors():
    whole = algebra.direction(random_update())
    hidden = LowRank(whole.B * 4, whole.A / 4)
    moved = noised(whole, 0.3, seeded(5))
    assert torch.equal(moved.B, noised(whole, 0.3, seeded(5)).B)
    assert torch.allclose(dense(moved), dense(noised(hidden, 0.3, seeded(5))), atol=1e-12)
    assert not torch.allclose(dense(moved), dense(noised(whole, 0.3, seeded(6))), atol=1e-3)


def test_without_noise_the_direction_stays_as_it_is():
    whole = algebra.direction(random_update())
    before = seeded(0).get_state()
    generator = seeded(0)
    assert noised(whole, 0.0, generator) is whole
    assert torch.equal(generator.get_state(), before)


def test_bad_noise_is_refused():
    for sigma in (-0.1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="at least 0"):
            noised(random_update(), sigma, seeded(0))
    with pytest.raises(ValueError, match="zero update"):
        noised(random_update()._replace(B=torch.zeros(24, 3)), 0.1, seeded(0))
