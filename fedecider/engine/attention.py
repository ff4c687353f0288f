"""Attention of packed rows: causal within a sequence, nothing across sequences.

A fused kernel that is called once per short sequence spends its time in overhead, on a CPU most of
all in its backward pass. Here sequences of similar length are gathered into one padded batch, so
that scores and values are batched matmuls; key-value heads that several query heads share are not
repeated. Only sequences too long for a matrix of scores go through the fused kernel, one by one.

Two attentions of the same queries over different keys merge exactly, if each keeps the largest
score and the denominator of its softmax beside its output (an `AttentionState`).

Shapes: T tokens of the row, h query heads, k key-value heads (g = h / k), d the size of a head; a
padded group of n sequences has length L. Scores and their sums are at least float32 (`acc_dtype`).
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

LONGEST = 512  # longer sequences are not padded into a matrix of scores
_SIMILAR = 0.7  # shortest of a group over its longest


class Layout(Protocol):
    """Who attends to whom in a row of tokens."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """query (T, h, d), key and value (T, k, d) to (T, h, d)."""
        ...


class AttentionState(NamedTuple):
    """Attention that can go on with further keys.

    `row_max` (T, h) is the largest score of a query, `out` (T, h, d) the sum of
    e^(score - row_max) v, not yet divided by `denominator` (T, h), the sum of e^(score - row_max).
    """

    out: Tensor
    row_max: Tensor
    denominator: Tensor


def merge_states(first: AttentionState, second: AttentionState) -> Tensor:
    """Attention (T, h, d) of the same queries over the keys of both states, divided."""
    row_max = torch.maximum(first.row_max, second.row_max)
    scale_first = (first.row_max - row_max).exp_()
    scale_second = (second.row_max - row_max).exp_()
    denominator = scale_first * first.denominator + scale_second * second.denominator
    out = first.out * (scale_first / denominator)[..., None]
    out = out + second.out * (scale_second / denominator)[..., None]
    return out.to(first.out.dtype)


class PackedAttention:
    """Attention within the sequences of a row, given by first position and length."""

    def __init__(self, starts: Sequence[int], lengths: Sequence[int], longest: int = LONGEST):
        by_length = sorted(zip(lengths, starts, strict=True), reverse=True)
        self.long = [(start, length) for length, start in by_length if length > longest]
        self.groups: list[Tensor] = []
        group: list[tuple[int, int]] = []
        for length, start in [*by_length[len(self.long) :], (0, 0)]:
            if group and length < _SIMILAR * group[0][0]:
                self.groups.append(_padded(group))
                group = []
            group.append((length, start))
        self._plans: dict[tuple[int, int, torch.device], list[_Indices]] = {}

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
    def attention_state(
        self, query: Tensor, key: Tensor, value: Tensor, scale: float
    ) -> AttentionState:
        """The same before the division, to be merged with further keys. No gradient."""
        tokens, heads, size = query.shape
        flat = [x.reshape(-1, size) for x in (query, key, value)]
        out, acc_dtype = torch.zeros_like(flat[0]), _acc_dtype(query)
        row_max = out.new_full((tokens * heads,), float("-inf"), dtype=acc_dtype)
        denominator = out.new_zeros(tokens * heads, dtype=acc_dtype)
        for plan in self._plan(query, key):
            state = _undivided(
                plan.queries(flat[0]), plan.keys(flat[1]), plan.keys(flat[2]), scale, plan.hidden
            )
            for into, padded in zip((out, row_max, denominator), state, strict=True):
                rows = padded.reshape(-1, *into.shape[1:]).index_select(0, plan.real_query)
                into.index_copy_(0, plan.to_query, rows)
        return AttentionState(
            out.view(query.shape), row_max.view(tokens, heads), denominator.view(tokens, heads)
        )

    def _plan(self, query: Tensor, key: Tensor) -> list["_Indices"]:
        shape = (query.shape[1], key.shape[1], query.device)
        if shape not in self._plans:
            self._plans[shape] = [_Indices(group, *shape) for group in self.groups]
        return self._plans[shape]


@torch.no_grad()
def shared_prefix_attention(
    query: Tensor, key: Tensor, value: Tensor, scale: float
) -> AttentionState:
    """Every query (N, h, d) over the same keys and values (P, k, d), before the division."""
    tokens, heads, size = query.shape
    kv_heads = key.shape[1]
    rows = query.view(tokens, kv_heads, -1, size).transpose(0, 1).reshape(kv_heads, -1, size)
    state = _undivided(rows, key.transpose(0, 1), value.transpose(0, 1), scale, None)
    out = state.out.view(kv_heads, tokens, -1, size).transpose(0, 1).reshape(tokens, heads, size)
    row_max, denominator = (
        x.view(kv_heads, tokens, -1).transpose(0, 1).reshape(tokens, heads)
        for x in (state.row_max, state.denominator)
    )
    return AttentionState(out, row_max, denominator)


def _undivided(
    query: Tensor, key: Tensor, value: Tensor, scale: float, hidden: Tensor | None
) -> AttentionState:
    """query (b, n, d), key and value (b, m, d), hidden (n, m) true where a key is not seen."""
    scores = torch.bmm(query, key.transpose(1, 2))
    scores = scores.to(_acc_dtype(scores)).mul_(scale)
    if hidden is not None:
        scores.masked_fill_(hidden, float("-inf"))
    row_max = scores.amax(-1)
    probs = scores.sub_(row_max[..., None]).exp_()
    return AttentionState(torch.bmm(probs.to(value.dtype), value), row_max, probs.sum(-1))


def _acc_dtype(values: Tensor) -> torch.dtype:
    return torch.promote_types(values.dtype, torch.float32)


def _padded(group: list[tuple[int, int]]) -> Tensor:
    """Position (n, L) in the row of each token of (length, start) pairs, -1 for padding."""
    step = torch.arange(group[0][0])
    lengths, starts = (torch.tensor(column)[:, None] for column in zip(*group, strict=True))
    return (starts + step).masked_fill(step >= lengths, -1)


class _Indices:
    """Row indices that take a group from the packed row to its padded batch and back.

    Rows are (token, head) pairs of the flat packed tensors (T h, d) and (T k, d). Padded queries
    are ordered (k, n, g, L) and keys (k, n, L): one batch entry per key-value head and sequence.
    """

    def __init__(self, positions: Tensor, heads: int, kv_heads: int, device: torch.device):
        positions = positions.to(device)
        self.count, self.length = positions.shape
        self.group_size = heads // kv_heads
        head = torch.arange(heads, device=device).view(kv_heads, 1, self.group_size, 1)
        query = positions[None, :, None] * heads + head
        key = positions[None] * kv_heads + torch.arange(kv_heads, device=device)[:, None, None]
        real = positions >= 0
        self.kv_heads = kv_heads
        # Padding takes any row: no real query sees it, and its gradient is 0.
        self.query, self.key = query.flatten().clamp(min=0), key.flatten().clamp(min=0)
        self.real_query = real[None, :, None].expand(query.shape).flatten().nonzero()[:, 0]
        self.real_key = real[None].expand(key.shape).flatten().nonzero()[:, 0]
        padded = ~real[None, :, None].expand(query.shape).flatten()
        self.padding = padded.nonzero()[:, 0] if bool(padded.any()) else None
        self.to_query, self.to_key = self.query[self.real_query], self.key[self.real_key]
        # Padding stands last in a sequence, so that no real token sees it.
        ones = torch.ones(self.length, self.length, dtype=torch.bool, device=device)
        self.hidden = ones.triu(1).repeat(self.group_size, 1)

    def queries(self, rows: Tensor) -> Tensor:
        """(T h, d) to (k n, g L, d)."""
        return rows.index_select(0, self.query).view(
            self.kv_heads * self.count, self.group_size * self.length, -1
        )

    def keys(self, rows: Tensor) -> Tensor:
        """(T k, d) to (k n, L, d)."""
        return rows.index_select(0, self.key).view(self.kv_heads * self.count, self.length, -1)


class _Attention(torch.autograd.Function):
    """softmax(q k^T scale + causal) v of every group, with the probabilities kept for backward."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, scale: float, plans: list[_Indices]
    ) -> Tensor:
        out = torch.zeros_like(query) if not _covers(plans, query) else torch.empty_like(query)
        kept = []
        for plan in plans:
            q, k, v = plan.queries(query), plan.keys(key), plan.keys(value)
            scores = torch.bmm(q, k.transpose(1, 2))
            scores = (
                scores.to(_acc_dtype(scores)).mul_(scale).masked_fill_(plan.hidden, float("-inf"))
            )
            probs = scores.softmax(-1).to(query.dtype)
            padded = torch.bmm(probs, v).view(-1, query.shape[1])
            out.index_copy_(0, plan.to_query, padded.index_select(0, plan.real_query))
            kept += [q, k, v, probs]
        if any(ctx.needs_input_grad):
            ctx.save_for_backward(*kept)
            ctx.scale, ctx.plans = scale, plans
            ctx.shapes = query.shape, key.shape
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        saved = ctx.saved_tensors
        d_query, d_key, d_value = (
            grad.new_zeros(shape) for shape in (ctx.shapes[0], ctx.shapes[1], ctx.shapes[1])
        )
        grad = grad.contiguous()
        for index, plan in enumerate(ctx.plans):
            q, k, v, probs = saved[4 * index : 4 * index + 4]
            d_out = plan.queries(grad)
            if plan.padding is not None:
                d_out.view(-1, grad.shape[1]).index_fill_(0, plan.padding, 0)
            d_v = torch.bmm(probs.transpose(1, 2), d_out)
            d_probs = torch.bmm(d_out, v.transpose(1, 2))
            d_scores = d_probs.to(_acc_dtype(probs)).mul_(probs)
            d_scores.addcmul_(d_scores.sum(-1, keepdim=True), probs, value=-1).mul_(ctx.scale)
            d_scores = d_scores.to(q.dtype)
            for into, target, real, padded in (
                (d_query, plan.to_query, plan.real_query, torch.bmm(d_scores, k)),
                (d_key, plan.to_key, plan.real_key, torch.bmm(d_scores.transpose(1, 2), q)),
                (d_value, plan.to_key, plan.real_key, d_v),
            ):
                rows = padded.view(-1, padded.shape[-1]).index_select(0, real)
                into.index_copy_(0, target, rows)
        return d_query, d_key, d_value, None, None


def _covers(plans: list[_Indices], query: Tensor) -> bool:
    """Whether every row of the flat query belongs to a sequence."""
    return sum(len(plan.to_query) for plan in plans) == len(query)
