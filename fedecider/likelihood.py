"""Token log-probabilities without a logits matrix.

Logits are the dearest tensor of a small language model (49,152 columns). They are made here only at
the positions that predict a title's token, a chunk of rows at a time, and never kept: the gradient
with respect to the hidden states is formed in the same pass, which the frozen output layer allows.
"""

import torch
from torch import Tensor

_CHUNK = 512


def _working(hidden: Tensor) -> torch.dtype:
    return torch.promote_types(hidden.dtype, torch.float32)


def log_normaliser(hidden: Tensor, head: Tensor) -> Tensor:
    """log sum exp of the logits of each row: hidden (S, d), head (V, d) to (S,), at least float32."""
    working = _working(hidden)
    rows = [(part @ head.T).to(working).logsumexp(-1) for part in hidden.split(_CHUNK)]
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
        working = _working(hidden)
        losses, expected = [], []
        for part, tokens in zip(hidden.split(_CHUNK), token.split(_CHUNK), strict=True):
            logits = (part @ head.T).to(working)
            normaliser = logits.logsumexp(-1, keepdim=True)
            losses.append((normaliser - logits.gather(1, tokens[:, None]))[:, 0])
            if ctx.needs_input_grad[0]:
                probabilities = logits.sub_(normaliser).exp_().to(head.dtype)
                expected.append(probabilities @ head - head[tokens])
        if expected:
            ctx.save_for_backward(torch.cat(expected))
        return torch.cat(losses)

    @staticmethod
    def backward(ctx, grad: Tensor):
        (slope,) = ctx.saved_tensors
        return grad[:, None].to(slope.dtype) * slope, None, None


def nll(hidden: Tensor, head: Tensor, token: Tensor) -> Tensor:
    """-log p(token_m | row m): hidden (M, d), frozen head (V, d), token (M,) to (M,).

    Differentiable in `hidden` alone; RuntimeError if the head asks for a gradient.
    """
    if head.requires_grad:
        raise RuntimeError("the output layer must be frozen: its gradient is not formed here")
    return _NegativeLogLikelihood.apply(hidden, head, token)
