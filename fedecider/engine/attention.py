"""Attention of packed rows: causal within a sequence, nothing across sequences.

A fused kernel that is called once a short sequence spends its time in overhead, on a CPU most of
all in its backward pass. Here sequences of similar length are gathered into one padded batch, so
that scores and values are batched matmuls; key-value heads that several query heads share are not
repeated. Only sequences too long for a matrix of scores go through the fused kernel, one by one.

Shapes: T tokens of the row, h query heads, k key-value heads (g = h / k), d the size of a head; a
padded group of n sequences has length L.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

LONGEST = 512  # longer sequences are not padded into a matrix of scores
_SIMILAR = 0.7  # shortest of a group over its longest


class Packed:
    """The sequences of a row, given by first position and length."""

    def __init__(self, starts: Sequence[int], lengths: Sequence[int], longest: int = LONGEST):
        pieces = sorted(zip(lengths, starts, strict=True), reverse=True)
        self.long = [(start, length) for length, start in pieces if length > longest]
        self.groups: list[Tensor] = []
        some: list[tuple[int, int]] = []
        for length, start in [*pieces[len(self.long) :], (0, 0)]:
            if some and length < _SIMILAR * some[0][0]:
                self.groups.append(_padded(some))
                some = []
            some.append((length, start))
        self._plans: dict[tuple[int, int, torch.device], list[_Plan]] = {}

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """query (T, h, d), key and value (T, k, d) to (T, h, d); rows of no sequence are 0."""
        plans = self._plan(query, key)
        flat = (x.reshape(-1, query.shape[2]) for x in (query, key, value))
        out = _Attention.apply(*flat, scale, plans).view(query.shape)
        pieces, at = [], 0
        for start, length in sorted(self.long):
            parts = (x[start : start + length].transpose(0, 1) for x in (query, key, value))
            q, k, v = (x[None] for x in parts)
            grouped = q.shape[1] != k.shape[1]
            seen = scaled_dot_product_attention(
                q, k, v, is_causal=True, scale=scale, enable_gqa=grouped
            )
            pieces += [out[at:start], seen[0].transpose(0, 1)]
            at = start + length
        return torch.cat([*pieces, out[at:]]) if pieces else out

    @torch.no_grad()
    def begun(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> "Begun":
        """The same without the division, to go on with further keys. No gradient."""
        tokens, heads, size = query.shape
        flat = [x.reshape(-1, size) for x in (query, key, value)]
        mixed, working = torch.zeros_like(flat[0]), torch.promote_types(query.dtype, torch.float32)
        top = mixed.new_full((tokens * heads,), float("-inf"), dtype=working)
        total = mixed.new_zeros(tokens * heads, dtype=working)
        for plan in self._plan(query, key):
            part = _begin(
                plan.queries(flat[0]), plan.keys(flat[1]), plan.keys(flat[2]), scale, plan.hidden
            )
            for into, what in zip((mixed, top, total), part, strict=True):
                what = what.reshape(-1, *into.shape[1:]).index_select(0, plan.real_query)
                into.index_copy_(0, plan.to_query, what)
        return Begun(mixed.view(query.shape), top.view(tokens, heads), total.view(tokens, heads))

    def _plan(self, query: Tensor, key: Tensor) -> list["_Plan"]:
        place = (query.shape[1], key.shape[1], query.device)
        if place not in self._plans:
            self._plans[place] = [_Plan(group, *place) for group in self.groups]
        return self._plans[place]


class Begun(NamedTuple):
    """Attention before its division: sum of e^(score - top) v, the top score, sum of e^(...)."""

    mixed: Tensor
    top: Tensor
    total: Tensor

    def joined(self, other: "Begun") -> Tensor:
        """Attention over the keys of both."""
        top = torch.maximum(self.top, other.top)
        own, theirs = (self.top - top).exp_(), (other.top - top).exp_()
        total = own * self.total + theirs * other.total
        mixed = self.mixed * (own / total)[..., None] + other.mixed * (theirs / total)[..., None]
        return mixed.to(self.mixed.dtype)


def _begin(query: Tensor, key: Tensor, value: Tensor, scale: float, hidden: Tensor | None) -> Begun:
    """query (b, n, d), key and value (b, m, d), hidden (n, m) true where a key is not seen."""
    scores = torch.bmm(query, key.transpose(1, 2))
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32)).mul_(scale)
    if hidden is not None:
        scores.masked_fill_(hidden, float("-inf"))
    top = scores.amax(-1)
    chance = scores.sub_(top[..., None]).exp_()
    return Begun(torch.bmm(chance.to(value.dtype), value), top, chance.sum(-1))


@torch.no_grad()
def seen_by_all(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Begun:
    """Every query (N, h, d) over the same keys and values (P, k, d), before the division."""
    tokens, heads, size = query.shape
    shared = key.shape[1]
    rows = query.view(tokens, shared, -1, size).transpose(0, 1).reshape(shared, -1, size)
    mixed, top, total = _begin(rows, key.transpose(0, 1), value.transpose(0, 1), scale, None)
    mixed = mixed.view(shared, tokens, -1, size).transpose(0, 1).reshape(tokens, heads, size)
    top, total = (
        x.view(shared, tokens, -1).transpose(0, 1).reshape(tokens, heads) for x in (top, total)
    )
    return Begun(mixed, top, total)


def _padded(some: list[tuple[int, int]]) -> Tensor:
    """Position (n, L) of each token of some sequences in the row, -1 for padding."""
    step = torch.arange(some[0][0])
    lengths, starts = (torch.tensor(column)[:, None] for column in zip(*some, strict=True))
    return (starts + step).masked_fill(step >= lengths, -1)


class _Plan:
    """Row indices that take a group from the packed row to its padded batch and back.

    Rows are (token, head) pairs of the flat packed tensors (T h, d) and (T k, d). Padded queries
    are ordered (k, n, g, L) and keys (k, n, L): one batch entry a key-value head and sequence.
    """

    def __init__(self, positions: Tensor, heads: int, shared: int, device: torch.device):
        positions = positions.to(device)
        self.count, self.length = positions.shape
        self.many = heads // shared
        head = torch.arange(heads, device=device).view(shared, 1, self.many, 1)
        query = positions[None, :, None] * heads + head
        key = positions[None] * shared + torch.arange(shared, device=device)[:, None, None]
        real = positions >= 0
        self.shared = shared
        # Padding takes any row: no real query sees it, and its gradient is 0.
        self.query, self.key = query.flatten().clamp(min=0), key.flatten().clamp(min=0)
        self.real_query = real[None, :, None].expand(query.shape).flatten().nonzero()[:, 0]
        self.real_key = real[None].expand(key.shape).flatten().nonzero()[:, 0]
        padded = ~real[None, :, None].expand(query.shape).flatten()
        self.padding = padded.nonzero()[:, 0] if bool(padded.any()) else None
        self.to_query, self.to_key = self.query[self.real_query], self.key[self.real_key]
        # Padding stands last in a sequence, so that no real token sees it.
        ones = torch.ones(self.length, self.length, dtype=torch.bool, device=device)
        self.hidden = ones.triu(1).repeat(self.many, 1)

    def queries(self, rows: Tensor) -> Tensor:
        """(T h, d) to (k n, g L, d)."""
        return rows.index_select(0, self.query).view(
            self.shared * self.count, self.many * self.length, -1
        )

    def keys(self, rows: Tensor) -> Tensor:
        """(T k, d) to (k n, L, d)."""
        return rows.index_select(0, self.key).view(self.shared * self.count, self.length, -1)


class _Attention(torch.autograd.Function):
    """softmax(q k^T scale + causal) v of every group, with the probabilities kept for backward."""

    @staticmethod
    def forward(ctx, query, key, value, scale, plans):
        out = torch.zeros_like(query) if not _covers(plans, query) else torch.empty_like(query)
        kept = []
        for plan in plans:
            q, k, v = plan.queries(query), plan.keys(key), plan.keys(value)
            scores = torch.bmm(q, k.transpose(1, 2))
            working = torch.promote_types(scores.dtype, torch.float32)
            scores = scores.to(working).mul_(scale).masked_fill_(plan.hidden, float("-inf"))
            chance = scores.softmax(-1).to(query.dtype)
            mixed = torch.bmm(chance, v).view(-1, query.shape[1])
            out.index_copy_(0, plan.to_query, mixed.index_select(0, plan.real_query))
            kept += [q, k, v, chance]
        if any(ctx.needs_input_grad):
            ctx.save_for_backward(*kept)
            ctx.scale, ctx.plans = scale, plans
            ctx.shapes = query.shape, key.shape
        return out

    @staticmethod
    def backward(ctx, grad):
        saved = ctx.saved_tensors
        d_query, d_key, d_value = (
            grad.new_zeros(shape) for shape in (ctx.shapes[0], ctx.shapes[1], ctx.shapes[1])
        )
        grad = grad.contiguous()
        for at, plan in enumerate(ctx.plans):
            q, k, v, chance = saved[4 * at : 4 * at + 4]
            d_mixed = plan.queries(grad)
            if plan.padding is not None:
                d_mixed.view(-1, grad.shape[1]).index_fill_(0, plan.padding, 0)
            d_v = torch.bmm(chance.transpose(1, 2), d_mixed)
            d_chance = torch.bmm(d_mixed, v.transpose(1, 2))
            working = torch.promote_types(chance.dtype, torch.float32)
            d_scores = d_chance.to(working).mul_(chance)
            d_scores.addcmul_(d_scores.sum(-1, keepdim=True), chance, value=-1).mul_(ctx.scale)
            d_scores = d_scores.to(q.dtype)
            for into, where, real, what in (
                (d_query, plan.to_query, plan.real_query, torch.bmm(d_scores, k)),
                (d_key, plan.to_key, plan.real_key, torch.bmm(d_scores.transpose(1, 2), q)),
                (d_value, plan.to_key, plan.real_key, d_v),
            ):
                into.index_copy_(0, where, what.view(-1, what.shape[-1]).index_select(0, real))
        return d_query, d_key, d_value, None, None


def _covers(plans: list[_Plan], query: Tensor) -> bool:
    return sum(len(plan.to_query) for plan in plans) == len(query)
