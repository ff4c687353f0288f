"""Magnitude and direction of a low-rank update, factored throughout (method, section 2).

A LoRA update of one adapted layer is `dW = gamma * B @ A`, of shape (d_out, d_in) and rank <= r.
It is split into a magnitude and a direction, `dW = m * D`, and neither is ever formed densely:
with the Gram matrices `G_B = B^T B` and `G_A = A A^T` (both r x r)

    ||B A||_F^2          = trace(G_B G_A)
    <B_i A_i, B_j A_j>_F = trace((B_i^T B_j) (A_j A_i^T)),

so everything costs O(r^2 (d_in + d_out)). Source: FeDecider (arXiv 2602.16034) for the split into
scale and direction; the factored algebra, the canonical form and the column and spectral kinds are
our reconstruction ("column" is the magnitude of DoRA, arXiv 2402.09353).

All functions work in float64 whatever the factors' type and first scale the factors, so that
updates of any scale from 1e-30 to 1e30 keep full precision. A column b of B and its row a of A may
come as `s b, a / s` for any s; norms and the canonical form bring both to equal length first.
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

NormKind = Literal["frobenius", "column", "spectral"]
NORM_KINDS: tuple[NormKind, ...] = ("frobenius", "column", "spectral")

_EPS = torch.finfo(torch.float64).eps
# Below this ratio of ||BA||^2 to ||B||^2 ||A||^2 the Gram trace loses digits by cancellation and
# the triangular factors are used instead (they lose half as many).
_CANCELLATION = 1e-5
_ZERO = -10_000  # stands for the exponent of a zero vector, far below that of any float64


class LowRank(NamedTuple):
    """The matrix `B @ A`, kept as its factors: B (d_out, r) and A (r, d_in)."""

    B: Tensor
    A: Tensor

    @property
    def rank(self) -> int:
        """Number of columns of B, an upper bound of the matrix' rank."""
        return self.A.shape[0]

    def scaled(self, factor: float | Tensor) -> "LowRank":
        """The update times a number; B carries the factor."""
        return LowRank(self.B * factor, self.A)

    def to(self, *args: Any, **kwargs: Any) -> "LowRank":
        """Both factors through `Tensor.to`."""
        return LowRank(self.B.to(*args, **kwargs), self.A.to(*args, **kwargs))


class Decomposition(NamedTuple):
    """`update = magnitude * direction`; the magnitude is () or, for "column", (d_in,), float64."""

    magnitude: Tensor
    direction: LowRank


class Canonical(NamedTuple):
    """`U diag(S) Vt`: U (d_out, k), S (k,) descending and positive, Vt (k, d_in), float64."""

    U: Tensor
    S: Tensor
    Vt: Tensor

    def low_rank(self) -> LowRank:
        """As a pair of factors of LoRA's shapes; B carries the singular values."""
        return LowRank(self.U * self.S, self.Vt)


def _check(update: LowRank) -> None:
    B, A = update
    if B.ndim != 2 or A.ndim != 2 or B.shape[1] != A.shape[0]:
        raise ValueError(
            f"a low-rank update needs B (d_out, r) and A (r, d_in), got {tuple(B.shape)} and "
            f"{tuple(A.shape)}"
        )
    if not (torch.isfinite(B).all() and torch.isfinite(A).all()):
        raise ValueError("a low-rank update must be finite, got nan or inf in its factors")


def _unit_scale(factor: Tensor) -> tuple[Tensor, Tensor]:
    """The factor in float64 divided by its largest absolute entry, and that entry (1 for zeros)."""
    factor = factor.detach().to(torch.float64)
    peak = factor.abs().amax() if factor.numel() else factor.new_zeros(())
    peak = torch.where(peak > 0, peak, torch.ones_like(peak))
    return factor / peak, peak


def _power(exponent: Tensor) -> Tensor:
    """2^e of int64 e as float64, made of its bits since `exp2` may round; e is cut to float64's."""
    return ((exponent.clamp(-1022, 1023) + 1023) << 52).view(torch.float64)


def _exponent(rows: Tensor) -> Tensor:
    """int64 e (n,) with the 2-norm of each row of (n, d) in [2^(e-1), 2^e); _ZERO for zero rows."""
    if not rows.numel():
        return torch.full(rows.shape[:1], _ZERO, device=rows.device)
    first = torch.frexp(rows.abs().amax(dim=1)).exponent.long()
    # Scaled, since the squares of 1e200 are too large.
    length = torch.linalg.vector_norm(rows * _power(-first)[:, None], dim=1)
    return torch.where(length > 0, first + torch.frexp(length).exponent.long(), _ZERO)


def _balanced(update: LowRank) -> tuple[Tensor, Tensor, Tensor]:
    """Float64 (B, A, scale) with `scale * B A` the update, the scale () a power of two.

    B[:, k] and A[k] have the same norm, up to a factor of 4, and the longest such pair is near 1.
    Every factor is a power of two, so no digit changes.
    """
    B, A = (factor.detach().to(torch.float64) for factor in update)
    of_b, of_a = _exponent(B.T), _exponent(A)
    both = of_b + of_a
    longest = both.amax() if both.numel() else both.sum()
    longest = torch.where(longest > _ZERO / 2, longest, 0)
    # A pair 1e-300 times as long as the longest is lost in the sum whatever its scale.
    both = (both - longest).clamp(min=-1000)
    half = both // 2
    return B * _power(half - of_b), A * _power(both - half - of_a)[:, None], _power(longest)


def _triangular(factor: Tensor) -> Tensor:
    """R of the thin QR of a tall matrix (d, r): min(d, r) x r, with R^T R = factor^T factor."""
    return torch.linalg.qr(factor, mode="r").R


def _unscaled_norm(B: Tensor, A: Tensor) -> Tensor:
    """||B A||_F of float64 factors of moderate scale; exactly 0 if it is roundoff only."""
    gram_b, gram_a = B.T @ B, A @ A.T
    bound = gram_b.trace() * gram_a.trace()
    square = (gram_b * gram_a.T).sum()
    if square > _CANCELLATION * bound:
        return square.sqrt()
    norm = torch.linalg.matrix_norm(_triangular(B) @ _triangular(A.T).T)
    roundoff = 8 * _EPS * max(A.shape[0], 1) * bound.sqrt()
    return norm if norm > roundoff else torch.zeros_like(norm)


def norm(update: LowRank, kind: NormKind = "frobenius") -> Tensor:
    """Magnitude of an update, float64: () or, for "column", the 2-norm of each column, (d_in,).

    "frobenius" is `sqrt(trace(G_B G_A))`, "spectral" the largest singular value.
    Raises ValueError for an unknown kind, factors that do not fit, or non-finite entries.
    """
    _check(update)
    B, A, scale = _balanced(update)
    if kind == "frobenius":
        return scale * _unscaled_norm(B, A)
    if kind == "column":
        columns = torch.linalg.vector_norm(_triangular(B) @ A, dim=0)
        bound = torch.linalg.matrix_norm(B) * torch.linalg.vector_norm(A, dim=0)
        roundoff = 8 * _EPS * max(A.shape[0], 1) * bound
        return scale * torch.where(columns > roundoff, columns, torch.zeros_like(columns))
    if kind == "spectral":
        if _unscaled_norm(B, A) == 0:
            return torch.zeros_like(scale)
        return scale * torch.linalg.matrix_norm(_triangular(B) @ _triangular(A.T).T, ord=2)
    raise ValueError(f"norm kind must be one of {', '.join(NORM_KINDS)}, got {kind!r}")


def inner(first: LowRank, second: LowRank) -> Tensor:
    """Frobenius inner product `trace((B_i^T B_j)(A_j A_i^T))`, () float64; ranks may differ."""
    _check(first)
    _check(second)
    if first.B.shape[0] != second.B.shape[0] or first.A.shape[1] != second.A.shape[1]:
        raise ValueError(
            "inner product of updates of different layers: "
            f"({first.B.shape[0]}, {first.A.shape[1]}) and "
            f"({second.B.shape[0]}, {second.A.shape[1]})"
        )
    (B_i, b_i), (A_i, a_i) = _unit_scale(first.B), _unit_scale(first.A)
    (B_j, b_j), (A_j, a_j) = _unit_scale(second.B), _unit_scale(second.A)
    return ((B_i.T @ B_j) * (A_i @ A_j.T)).sum() * (b_i * a_i) * (b_j * a_j)


def cosine(first: LowRank, second: LowRank) -> Tensor:
    """Cosine of the angle between two updates, () float64; nan if one of them is zero."""
    scale = norm(first) * norm(second)
    return inner(first, second) / scale if scale > 0 else torch.full_like(scale, torch.nan)


def decompose(update: LowRank, kind: NormKind = "frobenius") -> Decomposition | None:
    """Split `update = m * D`, ||D|| = 1 of the given kind; None for a zero update.

    A zero update (a fresh LoRA, a client that did not train) has no direction. For "column" the
    columns that are zero stay zero in D. Factors come back in float64.
    """
    magnitude = norm(update, kind)
    if not (magnitude > 0).any():
        return None
    B, A, scale = _balanced(update)
    relative = magnitude / scale
    inverse = torch.where(relative > 0, 1 / relative, torch.zeros_like(relative))
    return Decomposition(magnitude, LowRank(B, A * inverse))


def canonical(update: LowRank) -> Canonical | None:
    """Thin singular value decomposition of `B @ A`; None for a zero update.

    Thin QR of B and A^T, SVD of the r x r core; singular values that are roundoff are dropped and
    the entry of largest absolute value in each column of U is made positive. The result does not
    tell how the client factored its update, and equal updates give equal factors wherever singular
    values are distinct. For a Frobenius direction ||S||_2 = 1.
    """
    _check(update)
    B, A, scale = _balanced(update)
    if _unscaled_norm(B, A) == 0:
        return None
    basis_b, R_b = torch.linalg.qr(B)
    basis_a, R_a = torch.linalg.qr(A.T)
    U, S, Vt = torch.linalg.svd(R_b @ R_a.T, full_matrices=False)
    keep = S > 8 * _EPS * max(B.shape[1], 1) * torch.linalg.matrix_norm(B) * torch.linalg.norm(A)
    U, S, Vt = basis_b @ U[:, keep], S[keep], Vt[keep] @ basis_a.T
    peak = U.gather(0, U.abs().argmax(dim=0, keepdim=True))
    sign = torch.where(peak < 0, -1.0, 1.0).to(U.dtype)
    return Canonical(U * sign, S * scale, Vt * sign.T)


def truncate(form: Canonical, k: int) -> tuple[Canonical, float]:
    """The k largest singular directions and the Frobenius error, `sqrt(sum of dropped S^2)`.

    The result is not normalised again: the error is that of the matrix itself (Eckart-Young).
    Raises ValueError for k < 1.
    """
    if k < 1:
        raise ValueError(f"truncation needs k >= 1 singular directions, got {k}")
    error = torch.linalg.vector_norm(form.S[k:]).item()
    return Canonical(form.U[:, :k], form.S[:k], form.Vt[:k]), error


def direction(
    update: LowRank, kind: NormKind = "frobenius", k: int | None = None
) -> LowRank | None:
    """What a client shares of one layer: its direction in canonical form, or None if it has none.

    `k` truncates to the top k singular directions. Returns a LowRank, float64, B = U diag(S).
    """
    parts = decompose(update, kind)
    if parts is None:
        return None
    form = canonical(parts.direction)
    if form is None:
        return None
    return (form if k is None else truncate(form, k)[0]).low_rank()


def stack(updates: Sequence[LowRank]) -> LowRank:
    """Updates of one layer side by side, (d_out, sum r_j) and (sum r_j, d_in): B A is their sum."""
    if not updates:
        raise ValueError("stacking needs at least one update")
    return LowRank(
        torch.cat([update.B for update in updates], dim=1),
        torch.cat([update.A for update in updates], dim=0),
    )


def combine(updates: Sequence[LowRank], weights: Sequence[float]) -> LowRank:
    """The exact weighted sum `sum_j w_j B_j A_j` as one stacked pair (no rank is lost)."""
    if len(updates) != len(weights):
        raise ValueError(f"{len(updates)} updates but {len(weights)} weights")
    return stack([update.scaled(weight) for update, weight in zip(updates, weights, strict=True)])
