"""Token log-probabilities without a logits matrix.

Logits are the dearest tensor of a small language model (49,152 columns). They are made here only at
the positions that predict a title's token, a block at a time in one reused buffer, and never kept.
The normaliser is summed block by block under a running maximum, and the gradient with respect to
the hidden states is formed in the same sweep, which the frozen output layer allows: one exponential
per logit, where a softmax over stored logits needs several passes over fresh memory.
"""

from typing import Any

import torch
from torch import Tensor

# A block of logits of this size stays in a laptop's cache.
_ROWS, _COLUMNS = 512, 2048
_PAIRS = 4096  # pairs of a row and a token whose logits `log_probs` makes at a time


def _acc_dtype(hidden: Tensor) -> torch.dtype:
    return torch.promote_types(hidden.dtype, torch.float32)


@torch.no_grad()
def _sweep(hidden: Tensor, head: Tensor, expected: bool) -> tuple[Tensor, Tensor | None]:
    """log sum exp of each row's logits, (S,), and, if asked for, the expected output row (S, d).

    hidden (S, d), head (V, d). The expected row is sum_v p(v) head[v], the normaliser's gradient.
    """
    acc_dtype = _acc_dtype(hidden)
    normalisers, means = [], []
    for part in hidden.split(_ROWS):
        rows = len(part)
        row_max = torch.full((rows,), float("-inf"), dtype=acc_dtype, device=part.device)
        denominator = torch.zeros_like(row_max)
        mean = part.new_zeros(part.shape, dtype=acc_dtype)
        product = torch.empty_like(part)
        logits = part.new_empty(rows, 0)
        probs = logits.new_empty(rows, 0, dtype=acc_dtype)
        for columns in head.split(_COLUMNS):
            if logits.shape[1] != len(columns):
                logits = part.new_empty(rows, len(columns))
                probs = logits.new_empty(logits.shape, dtype=acc_dtype)
            torch.mm(part, columns.T, out=logits)
            new_max = torch.maximum(row_max, logits.amax(-1).to(acc_dtype))
            rescale = (row_max - new_max).exp_()
            # Not divided by their sum yet.
            probs.copy_(logits).sub_(new_max[:, None]).exp_()
            denominator.mul_(rescale).add_(probs.sum(-1))
            if expected:
                # Back into the buffer of the logits, in the model's own precision.
                mean.mul_(rescale[:, None])
                mean.add_(torch.mm(logits.copy_(probs), columns, out=product))
            row_max = new_max
        normalisers.append(row_max + denominator.log())
        means.append(mean.div_(denominator[:, None]))
    if not normalisers:
        return hidden.new_zeros(0, dtype=acc_dtype), hidden.new_zeros(0, hidden.shape[1])
    return torch.cat(normalisers), torch.cat(means) if expected else None


def log_normaliser(hidden: Tensor, head: Tensor) -> Tensor:
    """log sum exp of each row's logits: hidden (S, d), head (V, d) to (S,), at least float32.

    No gradient.
    """
    return _sweep(hidden, head, expected=False)[0]


@torch.no_grad()
def log_probs(hidden: Tensor, head: Tensor, source: Tensor, token: Tensor) -> Tensor:
    """log p(token_m | row source_m) in nats, (M,), no gradient: many tokens may share a row.

    hidden (S, d), head (V, d), source and token (M,) on the device of both.
    """
    acc_dtype = _acc_dtype(hidden)
    normaliser = log_normaliser(hidden, head)
    parts = []
    for rows, tokens in zip(source.split(_PAIRS), token.split(_PAIRS), strict=True):
        logits = (hidden[rows].to(acc_dtype) * head[tokens].to(acc_dtype)).sum(-1)
        parts.append(logits - normaliser[rows])
    return torch.cat(parts) if parts else normaliser.new_zeros(0)


class _NegativeLogLikelihood(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Tensor, token: Tensor) -> Tensor:
        acc_dtype = _acc_dtype(hidden)
        normaliser, mean = _sweep(hidden, head, ctx.needs_input_grad[0])
        target = head[token].to(acc_dtype)
        loss = normaliser - (hidden.to(acc_dtype) * target).sum(-1)
        ctx.dtype = hidden.dtype
        if mean is not None:
            # The expected output row under the model minus that of the target.
            ctx.save_for_backward(mean.sub_(target))
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (slope,) = ctx.saved_tensors
        return (grad[:, None] * slope).to(ctx.dtype), None, None


def nll(hidden: Tensor, head: Tensor, token: Tensor) -> Tensor:
    """-log p(token_m | row m) in nats: hidden (M, d), frozen head (V, d), token (M,) to (M,).

    Differentiable in `hidden` alone; RuntimeError if the head asks for a gradient.
    """
    if head.requires_grad:
        raise RuntimeError("the output layer must be frozen: its gradient is not formed here")
    return _NegativeLogLikelihood.apply(hidden, head, token)
