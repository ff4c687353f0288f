"""Token log-probabilities without a logits matrix.

Logits are the dearest tensor of a small language model (49,152 columns). They are made here only at
the positions that predict a title's token, a block at a time in one reused buffer, and never kept.
The normaliser is summed block by block under a running maximum, and the gradient with respect to
the hidden states is formed in the same sweep, which the frozen output layer allows: one exponential
a logit, where a softmax over stored logits needs several passes over fresh memory.
"""

import torch
from torch import Tensor

# A block of logits of this size stays in a laptop's cache.
_ROWS, _COLUMNS = 512, 2048


def _working(hidden: Tensor) -> torch.dtype:
    return torch.promote_types(hidden.dtype, torch.float32)


@torch.no_grad()
def _sweep(hidden: Tensor, head: Tensor, expected: bool) -> tuple[Tensor, Tensor | None]:
    """log sum exp of each row's logits, (S,), and, if asked for, the expected output row (S, d).

    hidden (S, d), head (V, d). The expected row is sum_v p(v) head[v], the normaliser's gradient.
    """
    working = _working(hidden)
    normalisers, means = [], []
    for part in hidden.split(_ROWS):
        rows = len(part)
        top = torch.full((rows,), float("-inf"), dtype=working, device=part.device)
        total, mean = torch.zeros_like(top), part.new_zeros(part.shape, dtype=working)
        product = torch.empty_like(part)
        logits = chance = None
        for some in head.split(_COLUMNS):
            if logits is None or logits.shape[1] != len(some):
                logits = part.new_empty(rows, len(some))
                chance = logits.new_empty(logits.shape, dtype=working)
            torch.mm(part, some.T, out=logits)
            higher = torch.maximum(top, logits.amax(-1).to(working))
            kept = (top - higher).exp_()
            chance.copy_(logits).sub_(higher[:, None]).exp_()
            total.mul_(kept).add_(chance.sum(-1))
            if expected:
                # Back into the buffer of the logits, in the model's own precision.
                mean.mul_(kept[:, None]).add_(torch.mm(logits.copy_(chance), some, out=product))
            top = higher
        normalisers.append(top + total.log())
        means.append(mean.div_(total[:, None]))
    if not normalisers:
        return hidden.new_zeros(0, dtype=working), hidden.new_zeros(0, hidden.shape[1])
    return torch.cat(normalisers), torch.cat(means) if expected else None


def log_normaliser(hidden: Tensor, head: Tensor) -> Tensor:
    """log sum exp of each row's logits: hidden (S, d), head (V, d) to (S,), at least float32."""
    return _sweep(hidden, head, expected=False)[0]


@torch.no_grad()
def log_probs(hidden: Tensor, head: Tensor, source: Tensor, token: Tensor) -> Tensor:
    """log p(token_m | row source_m), (M,), no gradient: many tokens may share a row."""
    working = _working(hidden)
    normaliser = log_normaliser(hidden, head)
    parts = []
    for rows, tokens in zip(source.split(4096), token.split(4096), strict=True):
        logit = (hidden[rows].to(working) * head[tokens].to(working)).sum(-1)
        parts.append(logit - normaliser[rows])
    return torch.cat(parts) if parts else normaliser.new_zeros(0)


class _NegativeLogLikelihood(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden: Tensor, head: Tensor, token: Tensor) -> Tensor:
        working = _working(hidden)
        normaliser, slope = _sweep(hidden, head, ctx.needs_input_grad[0])
        wanted = head[token].to(working)
        loss = normaliser - (hidden.to(working) * wanted).sum(-1)
        ctx.dtype = hidden.dtype
        if slope is not None:
            # The expected output row under the model minus that of the target.
            ctx.save_for_backward(slope.sub_(wanted))
        return loss

    @staticmethod
    def backward(ctx, grad: Tensor):
        (slope,) = ctx.saved_tensors
        return (grad[:, None] * slope).to(ctx.dtype), None, None


def nll(hidden: Tensor, head: Tensor, token: Tensor) -> Tensor:
    """-log p(token_m | row m): hidden (M, d), frozen head (V, d), token (M,) to (M,).

    Differentiable in `hidden` alone; RuntimeError if the head asks for a gradient.
    """
    if head.requires_grad:
        raise RuntimeError("the output layer must be frozen: its gradient is not formed here")
    return _NegativeLogLikelihood.apply(hidden, head, token)
