"""Batched inner products against dense ones and against those of single pairs."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedecider.direction import LowRank, inner, norm
from fedecider.gram import cosines, gram, norms

SHAPES = {"a.q": (6, 9), "a.v": (4, 9), "b.q": (6, 9), "b.v": (4, 9)}


def client(seed, rank, dtype=torch.float64, names=tuple(SHAPES)):
    generator = torch.Generator().manual_seed(seed)
    return {
        name: LowRank(
            torch.randn(SHAPES[name][0], rank, generator=generator, dtype=dtype),
            torch.randn(rank, SHAPES[name][1], generator=generator, dtype=dtype),
        )
        for name in names
    }


def dense(pair):
    return pair.B @ pair.A


@settings(deadline=None)
@given(st.lists(st.integers(1, 7), min_size=1, max_size=4), st.integers(0, 1000))
def test_inner_products_are_the_dense_ones(ranks, seed):
    clients = [client(seed + place, rank) for place, rank in enumerate(ranks)]
    found = gram(clients)
    assert list(found) == list(SHAPES)
    for name, entries in found.items():
        flat = torch.stack([dense(one[name]).flatten() for one in clients])
        torch.testing.assert_close(entries, flat @ flat.T, rtol=1e-10, atol=1e-10)


def test_agrees_with_the_algebra_of_pairs_in_single_precision():
    clients = [client(place, 3, torch.float32) for place in range(3)]
    found = gram(clients)
    for name, entries in found.items():
        for i, one in enumerate(clients):
            for j, other in enumerate(clients):
                wanted = inner(one[name], other[name]).float()
                torch.testing.assert_close(entries[i, j], wanted, rtol=1e-5, atol=1e-4)
            torch.testing.assert_close(norms(found)[name][i], norm(one[name]).float())
    for entries in cosines(found).values():
        torch.testing.assert_close(entries.diagonal(), torch.ones(3))


def test_an_absent_module_counts_as_zero():
    clients = [client(0, 2), client(1, 2, names=("a.q",)), {}]
    found = gram(clients)
    assert list(found) == list(SHAPES)
    assert found["a.q"][0, 1] != 0 and found["b.v"][0, 0] > 0
    assert not found["b.v"][1:].any() and not found["a.q"][2].any()
    assert cosines(found)["b.v"][0, 1].isnan()


def test_what_does_not_fit_is_named():
    with pytest.raises(ValueError, match="at least one client"):
        gram([])
    other = {"a.q": LowRank(torch.zeros(5, 1), torch.zeros(1, 9))}
    with pytest.raises(ValueError, match="factors of a.q do not fit each other"):
        gram([client(0, 2), other])
