"""flora (Wang et al., arXiv 2409.05976): stacked LoRAs, folded into the base.

Up: A, B. Down: n x (A, B). The server stacks the clients' LoRAs; the stack is the exact weighted
sum of their updates, sum_i w_i gamma B_i A_i with w_i = n_i / sum n. Every client folds it into its
frozen weights and starts a fresh LoRA each round.
"""

from collections.abc import Sequence

import torch

from fedecider.adapter import Factors
from fedecider.direction import canonical, stack
from fedecider.methods.base import Downloads, MethodClient, Uploads
from fedecider.methods.fedavg import FedAvg, example_shares
from fedecider.mixture import initial_alpha
from fedecider.training import generator_of

_FOLDED = "folded"


class FLoRA(FedAvg):
    """Clients share one base here, so what is folded in is kept beside it, with weight 1."""

    name, label = "flora", "FLoRA"
    color, order = "#CC79A7", 43
    beside = (
        "All that was trained is folded into the base: `from folded/...`, with weight 1. The own "
        "LoRA was drawn anew (B = 0), so PEFT alone gives the base's outputs."
    )

    def aggregate(self, uploads: Uploads, round: int, absent: Sequence[str] = ()) -> Downloads:
        """Every client's pair, B scaled by its weight: side by side they are the weighted sum."""
        shares = example_shares(uploads)
        scaled = {
            client: {name: pair.scaled(shares[client]) for name, pair in upload.factors.items()}
            for client, upload in uploads.items()
        }
        return {client: scaled for client in (*uploads, *absent)}

    def receive(self, client: MethodClient, downloads: dict[str, Factors], round: int) -> None:
        """Fold the stack in, and start anew: A drawn for this client and round, B = 0."""
        model, adapter = client.model, client.adapter
        before = model.peer_directions.get(_FOLDED, {})
        folded = {}
        for name in adapter.names:
            parts = [before[name]] if name in before else []
            parts += [downloads[source][name].scaled(adapter.gamma) for source in sorted(downloads)]
            pair = stack(parts)
            if pair.rank > min(pair.B.shape[0], pair.A.shape[1]):
                # A longer stack than the matrix has rank: the same sum in fewer columns.
                short = canonical(pair)
                pair = pair if short is None else short.low_rank().to(torch.float32)
            folded[name] = pair
        model.factors = adapter.draw(generator_of(self.config, f"{client.name} fresh", round))
        model.peer_directions = {_FOLDED: folded}
        scope = self.config.direction.alpha_scope
        # 1: what is folded into the base is part of it.
        model.alpha = torch.ones_like(initial_alpha(adapter, [_FOLDED], scope))
