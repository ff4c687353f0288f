"""Gaussian noise on a direction that a client sends (our reconstruction)."""

import math

import torch

from fedecider.direction import LowRank, NormKind, canonical
from fedecider.direction import direction as unit


def noised(
    direction: LowRank,
    sigma: float,
    generator: torch.Generator,
    kind: NormKind = "frobenius",
) -> LowRank:
    """A direction plus Gaussian noise, of norm 1 again and in canonical form; float64.

    With the canonical factors B = U S (d_out, k) and A = V^T (k, d_in) of rank k

        D' = (B + E_B) (A + E_A) / ||(B + E_B) (A + E_A)||,

    entries of E_B and E_A independent, of variance sigma^2 / (2 d_out k) and sigma^2 / (2 d_in).
    For ||S||_2 = 1 each half of the first-order change E_B A + B E_A then has an expected squared
    Frobenius norm of sigma^2 / 2: sigma is the size of the noise beside a direction of size 1.

    The noise is added to the factors, so rank and bytes stay. To first order it leaves alone what
    is orthogonal to both the columns and the rows of D, so it is no mechanism of differential
    privacy. sigma = 0 gives the direction back as it is. Raises ValueError for a negative or
    non-finite sigma and for a zero direction.
    """
    if not (math.isfinite(sigma) and sigma >= 0):
        raise ValueError(f"the noise must be a finite number of at least 0, got {sigma}")
    if sigma == 0:
        return direction
    form = canonical(direction)
    if form is None:
        raise ValueError("a zero update has no direction to add noise to")
    B, A = form.low_rank()
    (d_out, k), d_in = B.shape, A.shape[1]

    def with_noise(factor: torch.Tensor, deviation: float) -> torch.Tensor:
        noise = torch.randn(
            factor.shape, generator=generator, dtype=torch.float64, device=generator.device
        )
        return factor + deviation * noise.to(factor.device)

    moved = LowRank(
        with_noise(B, sigma / math.sqrt(2 * d_out * k)), with_noise(A, sigma / math.sqrt(2 * d_in))
    )
    noisy = unit(moved, kind)
    assert noisy is not None  # two directions that cancel exactly are never drawn
    return noisy
