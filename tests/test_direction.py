"""Direction algebra against dense float64 computation, over shapes, ranks and scales."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedecider.direction import (
    NORM_KINDS,
    LowRank,
    canonical,
    combine,
    cosine,
    decompose,
    direction,
    inner,
    norm,
    stack,
    truncate,
)

shapes = st.tuples(st.integers(1, 24), st.integers(1, 24), st.integers(1, 9))
scales = st.floats(-30, 30).map(lambda exponent: 10.0**exponent)
seeds = st.integers(0, 2**31)


def random_update(shape, seed, scale_b=1.0, scale_a=1.0, deficient=False) -> LowRank:
    d_out, d_in, r = shape
    generator = torch.Generator().manual_seed(seed)
    B = torch.randn(d_out, r, generator=generator, dtype=torch.float64)
    A = torch.randn(r, d_in, generator=generator, dtype=torch.float64)
    if deficient and r > 1:
        B[:, -1] = B[:, 0]
        A[-1] = A[0] * 0.5
    return LowRank(B * scale_b, A * scale_a)


def dense(update: LowRank) -> torch.Tensor:
    return update.B.double() @ update.A.double()


def close(value, expected, scale=None, tolerance=1e-10):
    """Largest deviation relative to the scale of what is expected."""
    scale = torch.as_tensor(expected).abs().max() if scale is None else scale
    return (torch.as_tensor(value) - expected).abs().max() <= tolerance * scale


def compose(magnitude, unit: LowRank) -> LowRank:
    """Inverse of `decompose`: m D."""
    return LowRank(unit.B, unit.A * magnitude)


def dense_norm(matrix, kind):
    if kind == "column":
        return torch.linalg.vector_norm(matrix, dim=0)
    return torch.linalg.matrix_norm(matrix, ord="fro" if kind == "frobenius" else 2)


@settings(deadline=None, max_examples=80)
@given(shapes, seeds, scales, scales, st.booleans(), st.sampled_from(NORM_KINDS))
def test_norm_and_decomposition_agree_with_dense(shape, seed, scale_b, scale_a, deficient, kind):
    unit = random_update(shape, seed, deficient=deficient)
    update = LowRank(unit.B * scale_b, unit.A * scale_a)
    # The dense norm is taken at scale 1: squares of 1e60 would overflow there, not in our code.
    expected = dense_norm(dense(unit), kind) * scale_b * scale_a
    assert close(norm(update, kind), expected)
    magnitude, found = decompose(update, kind)
    assert close(magnitude, expected)
    assert close(dense_norm(dense(found), kind), torch.ones_like(expected))
    assert close(dense(compose(magnitude, found)), dense(unit) * scale_b * scale_a)


@st.composite
def unbalanced(draw):
    """An update of moderate size, and the same with its pairs as s b, a / s, an s for each."""
    shape = draw(shapes)
    update = random_update(shape, draw(seeds), deficient=draw(st.booleans()))
    by = draw(st.lists(scales, min_size=shape[2], max_size=shape[2]))
    by = torch.tensor(by, dtype=torch.float64)
    return update, LowRank(update.B * by, update.A / by[:, None])


@settings(deadline=None, max_examples=80)
@given(unbalanced(), st.sampled_from(NORM_KINDS))
def test_badly_balanced_pairs_lose_no_digit(pair, kind):
    update, same = pair
    expected = dense_norm(dense(update), kind)
    assert close(norm(same, kind), expected)
    magnitude, found = decompose(same, kind)
    assert close(magnitude, expected)
    assert close(dense(compose(magnitude, found)), dense(update))
    form = canonical(same)
    assert close(dense(form.low_rank()), dense(update))
    assert len(form.S) == torch.linalg.matrix_rank(dense(update))
    assert close(dense(direction(same, kind)), dense(found))


@settings(deadline=None, max_examples=60)
@given(shapes, seeds, st.data())
def test_pairs_of_different_size_add_up(shape, seed, data):
    """Pairs that are 1e-30 to 1e30 times as long, beside zero columns and rows."""
    unit = random_update(shape, seed)
    sizes = st.lists(st.one_of(st.just(0.0), scales), min_size=shape[2], max_size=shape[2])
    of_b, of_a = (torch.tensor(data.draw(sizes), dtype=torch.float64) for _ in range(2))
    update = LowRank(unit.B * of_b, unit.A * of_a[:, None])
    largest = (of_b * of_a).max()
    if largest == 0:
        assert norm(update) == 0 and decompose(update) is None and canonical(update) is None
        return
    relative = LowRank(unit.B * (of_b * of_a / largest), unit.A)  # squares of 1e60 are in range
    for kind in NORM_KINDS:
        expected = dense_norm(dense(relative), kind)
        assert close(norm(update, kind) / largest, expected)
    assert close(dense(canonical(update).low_rank()) / largest, dense(relative))


def test_pairs_are_balanced_without_rounding():
    update = random_update((12, 10, 3), 5)
    expected = norm(update)
    for exponent in (10, 50, 200):
        by = torch.tensor([2.0**exponent, 1.0, 2.0**-exponent], dtype=torch.float64)
        same = LowRank(update.B * by, update.A / by[:, None])
        assert torch.equal(norm(same), expected)
        for one, two in zip(direction(same), direction(update), strict=True):
            assert torch.equal(one, two)


@settings(deadline=None, max_examples=60)
@given(shapes, st.integers(1, 9), seeds, scales, scales)
def test_inner_product_agrees_with_dense_for_unequal_ranks(shape, rank, seed, first, second):
    one = random_update(shape, seed)
    other = random_update((*shape[:2], rank), seed + 1)
    bound = dense(one).norm() * dense(other).norm() * first * second
    scaled = inner(one.scaled(first), LowRank(other.B, other.A * second))
    assert close(scaled, (dense(one) * dense(other)).sum() * first * second, bound)


@settings(deadline=None, max_examples=60)
@given(shapes, seeds, scales, st.booleans())
def test_canonical_form_is_the_svd(shape, seed, scale, deficient):
    unit = random_update(shape, seed, deficient=deficient)
    form = canonical(unit.scaled(scale))
    assert close(dense(form.low_rank()), dense(unit) * scale)
    assert close(form.U.T @ form.U, torch.eye(len(form.S), dtype=torch.float64))
    assert close(form.Vt @ form.Vt.T, torch.eye(len(form.S), dtype=torch.float64))
    assert (form.S[:-1] >= form.S[1:]).all() and (form.S > 0).all()
    assert len(form.S) == torch.linalg.matrix_rank(dense(unit))
    peaks = form.U.gather(0, form.U.abs().argmax(0, keepdim=True))
    assert (peaks > 0).all()


@settings(deadline=None, max_examples=60)
@given(shapes, seeds, st.integers(1, 9))
def test_truncation_error_is_the_dropped_singular_values(shape, seed, k):
    update = random_update(shape, seed)
    form = canonical(update)
    shorter, error = truncate(form, k)
    missed = torch.linalg.matrix_norm(dense(update) - dense(shorter.low_rank()))
    assert len(shorter.S) == min(k, len(form.S))
    assert abs(missed - error) <= 1e-10 * norm(update)
    assert error == pytest.approx(form.S[k:].square().sum().sqrt().item(), rel=1e-12)


@settings(deadline=None, max_examples=40)
@given(shapes, seeds)
def test_equal_directions_make_equal_bytes(shape, seed):
    """However a client factors and scales its update, the same float32 factors leave it."""
    update = random_update(shape, seed)
    mixing = random_update((shape[2], shape[2], shape[2]), seed + 2).B
    mixing = mixing + 3 * torch.eye(shape[2], dtype=torch.float64) * mixing.norm()
    other = LowRank(update.B @ mixing * 1e12, torch.linalg.solve(mixing, update.A))
    first, second = direction(update), direction(other)
    assert close(first.B, second.B, 1, 1e-9) and close(first.A, second.A, 1, 1e-7)
    exact = LowRank(update.B * 2.0**40, update.A * 2.0**-7)  # powers of two change no digit
    assert torch.equal(first.B.float(), direction(exact).B.float())
    assert torch.equal(first.A.float(), direction(exact).A.float())


def test_direction_of_different_factorings_is_byte_equal():
    update = random_update((40, 30, 4), 7)
    mixing = random_update((4, 4, 4), 8).B
    other = LowRank(update.B @ mixing, torch.linalg.solve(mixing, update.A))
    for one, two in zip(direction(update), direction(other), strict=True):
        assert torch.equal(one.float(), two.float())


@pytest.mark.parametrize("kind", NORM_KINDS)
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_zero_updates_have_no_direction(kind, scale):
    fresh = LowRank(torch.zeros(6, 2), torch.randn(2, 5) * scale)
    # Two columns that cancel exactly: factors far from zero, a product that is zero.
    b, a = torch.randn(6, 1).double(), torch.randn(1, 5).double()
    cancelled = LowRank(torch.cat([b, b], 1) * scale, torch.cat([a, -a]))
    for update in (fresh, cancelled):
        assert (norm(update, kind) == 0).all()
        assert decompose(update, kind) is None
        assert canonical(update) is None
        assert direction(update, kind) is None


def test_near_cancellation_keeps_digits():
    generator = torch.Generator().manual_seed(0)
    b = torch.randn(30, 1, generator=generator, dtype=torch.float64)
    a = torch.randn(1, 20, generator=generator, dtype=torch.float64)
    rest = torch.randn(30, 1, generator=generator, dtype=torch.float64) * 1e-6
    update = LowRank(torch.cat([b, b + rest], 1), torch.cat([a, -a]))
    expected = torch.linalg.matrix_norm(rest @ a)
    assert close(norm(update), expected, tolerance=1e-8)


def test_zero_columns_stay_zero():
    update = random_update((8, 6, 3), 1)
    update.A[:, 2] = 0
    magnitude, found = decompose(update, "column")
    assert magnitude[2] == 0 and (found.A[:, 2] == 0).all()
    assert torch.isfinite(found.A).all()


def test_direction_times_its_norm_gives_the_update_back():
    """A trap of the peers' code: one direction with alpha = its norm is the update itself."""
    update = LowRank(torch.randn(12, 4), torch.randn(4, 9))
    magnitude, found = decompose(update)
    again = combine([found], [magnitude.item()])
    assert close(dense(again), dense(update))
    assert close(dense(direction(update)) * magnitude, dense(update))


def test_combination_is_the_exact_weighted_sum_and_keeps_everyone():
    updates = [random_update((10, 7, rank), rank) for rank in (1, 3, 2)]
    weights = [0.5, -2.0, 0.25]
    mixed = combine(updates, weights)
    expected = sum(w * dense(u) for w, u in zip(weights, updates, strict=True))
    assert mixed.rank == 6 and close(dense(mixed), expected)
    for left_out in range(3):
        without = [w * (i != left_out) for i, w in enumerate(weights)]
        assert not close(dense(combine(updates, without)), expected, tolerance=1e-3)


def test_combinations_stay_in_the_span_of_the_directions():
    """Lemma 2: any weights give a point of span{D_1, ..., D_n}."""
    found = [direction(random_update((9, 8, 2), seed)) for seed in range(3)]
    basis = torch.stack([dense(d).flatten() for d in found], 1)
    point = dense(combine(found, [0.3, -1.7, 40.0])).flatten()
    solution = torch.linalg.lstsq(basis, point[:, None]).solution
    assert close((basis @ solution)[:, 0], point)
    assert close(solution[:, 0], torch.tensor([0.3, -1.7, 40.0], dtype=torch.float64))


def test_cosine():
    update = random_update((9, 8, 2), 3)
    assert close(cosine(update, update.scaled(7.0)), torch.tensor(1.0, dtype=torch.float64))
    assert close(cosine(update, update.scaled(-1e-9)), torch.tensor(-1.0, dtype=torch.float64))
    assert cosine(update, update.scaled(0.0)).isnan()


def test_bad_input_is_named():
    with pytest.raises(ValueError, match=r"\(3, 2\) and \(4, 5\)"):
        norm(LowRank(torch.zeros(3, 2), torch.zeros(4, 5)))
    with pytest.raises(ValueError, match="nan or inf"):
        norm(LowRank(torch.full((3, 2), torch.nan), torch.zeros(2, 5)))
    with pytest.raises(ValueError, match="frobenius, column, spectral, got 'l1'"):
        norm(random_update((3, 3, 1), 0), "l1")
    with pytest.raises(ValueError, match="different layers"):
        inner(random_update((3, 3, 1), 0), random_update((3, 4, 1), 0))
    with pytest.raises(ValueError, match="k >= 1"):
        truncate(canonical(random_update((3, 3, 1), 0)), 0)
    with pytest.raises(ValueError, match="2 updates but 1 weights"):
        combine([random_update((3, 3, 1), 0)] * 2, [1.0])
    with pytest.raises(ValueError, match="at least one"):
        stack([])
