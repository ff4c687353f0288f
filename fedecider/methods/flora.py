"""flora (Wang et al., arXiv 2409.05976): stacked LoRAs, folded into the base.

Up: A, B. Down: n x (A, B). The server stacks the clients' LoRAs; the stack is the exact weighted
sum of their updates, sum_i w_i gamma B_i A_i with w_i = n_i / sum n. Every client folds it into its
frozen weights and starts a fresh LoRA each round.
"""

import torch

from fedecider.client import seeded
from fedecider.direction import canonical, stack
from fedecider.methods.fedavg import FedAvg
from fedecider.methods.local import Downloads, Uploads

_FOLDED = "folded"


class FLoRA(FedAvg):
    """Clients share one base here, so what is folded in is kept beside it, with weight 1."""

    name = "flora"

    def aggregate(self, uploads: Uploads, numbers: dict[str, float], number: int) -> Downloads:
        """Every client's pair, B scaled by its weight: side by side they are the weighted sum."""
        total = sum(numbers[client] for client in uploads)
        scaled = {
            client: {name: pair.scaled(numbers[client] / total) for name, pair in factors.items()}
            for client, factors in uploads.items()
        }
        return {client: scaled for client in uploads}

    def receive(self, client, downloads, adapter, number):
        """Fold the stack in, and start anew: A drawn for this client and round, B = 0."""
        model = client.model
        before = model.foreign.get(_FOLDED, {})
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
        model.factors = adapter.drawn(seeded(self.config, f"{client.name} fresh", number))
        model.foreign = {_FOLDED: folded}
        model.alpha = self.weights(model, adapter)

    def weights(self, model, adapter):
        """1: what is folded into the base is part of it."""
        return torch.ones_like(super().weights(model, adapter))
