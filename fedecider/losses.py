"""Likelihood of title tokens: what local training lowers.

A loss maps the normed last hidden states of a packed batch, (T, width), the frozen output layer,
(V, width), and the batch's targets to one value per target token, (M,), in nats. A new one is a
function here and an entry of `LOSSES`; `training.loss` names it.
"""

from collections.abc import Callable

from torch import Tensor

from fedecider.engine.cross_entropy import nll
from fedecider.prompts import Targets

Loss = Callable[[Tensor, Tensor, Targets], Tensor]


def vocabulary(hidden: Tensor, head: Tensor, targets: Targets) -> Tensor:
    """-log p(token) with the softmax over the whole vocabulary (BIGRec, arXiv 2308.08434)."""
    return nll(hidden[targets.rows], head, targets.tokens)


LOSSES: dict[str, Loss] = {"vocabulary": vocabulary}
