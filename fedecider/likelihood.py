"""Token log-probabilities without a logits matrix.

Logits are the dearest tensor of a small language model (49,152 columns). They are made here only at
the positions that predict a title's token, a chunk of rows at a time, and never kept: the gradient
with respect to the hidden states is formed in the same pass, which the frozen output layer allows.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

# A block of logits of this size stays in a laptop's cache; the passes over it (cast, exp, sum) then
# cost half of what they cost on whole rows.
_ROWS, _COLUMNS = 256, 8192


def _working(hidden: Tensor) -> torch.dtype:
    return torch.promote_types(hidden.dtype, torch.float32)


def _normalisers(blocks: Iterable[Tensor], working: torch.dtype) -> Tensor:
    """log sum exp over the columns of all blocks, (rows,)."""
    return torch.stack([block.to(working).logsumexp(-1) for block in blocks]).logsumexp(0)


def log_normaliser(hidden: Tensor, head: Tensor) -> Tensor:
    """log sum exp of each row's logits: hidden (S, d), head (V, d) to (S,), at least float32."""
    working, columns = _working(hidden), head.split(_COLUMNS)
    rows = [
        _normalisers((part @ some.T for some in columns), working) for part in hidden.split(_ROWS)
    ]
    return torch.cat(rows) if rows else hidden.new_zeros(0, dtype=working)


def log_probs(hidden: Tensor, head: Tensor, source: Tensor, token: Tensor) -> Tensor:
    """log p(token_m | row source_m), (M,): many tokens may share a row, as first tokens do."""
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
        working, columns = _working(hidden), head.split(_COLUMNS)
        losses, slopes = [], []
        for part, tokens in zip(hidden.split(_ROWS), token.split(_ROWS), strict=True):
            blocks = [part @ some.T for some in columns]
            normaliser = _normalisers(blocks, working)
            logit = (part.to(working) * head[tokens].to(working)).sum(-1)
            losses.append(normaliser - logit)
            if ctx.needs_input_grad[0]:
                # The gradient: the expected output row under the model minus that of the target.
                slope = -head[tokens].to(working)
                for block, some in zip(blocks, columns, strict=True):
                    chance = block.to(working).sub_(normaliser[:, None]).exp_().to(head.dtype)
                    slope += chance @ some
                slopes.append(slope)
        ctx.dtype = hidden.dtype
        if slopes:
            ctx.save_for_backward(torch.cat(slopes))
        return torch.cat(losses)

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
