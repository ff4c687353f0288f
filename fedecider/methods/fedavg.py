"""fedavg (FedIT, arXiv 2305.05644): average A and B, weighted by the number of training targets.

Up and down: A, B. The factors are averaged apart, as FedIT does, so the average of the products
B A is not what comes out; that inexactness belongs to the method.
"""

from fedecider.direction import LowRank
from fedecider.methods.local import Downloads, Local, Uploads
from fedecider.wire import PayloadError


class FedAvg(Local):
    """One global LoRA: every client goes on from the weighted mean of all clients' factors."""

    name = "fedavg"
    sends_examples = True

    def upload(self, client, adapter):
        """The raw factors."""
        return client.model.factors

    def aggregate(self, uploads: Uploads, weights: dict[str, int], number: int) -> Downloads:
        """sum_i w_i A_i and sum_i w_i B_i with w_i = n_i / sum n, the same for every client."""
        total = sum(weights[client] for client in uploads)
        share = {client: weights[client] / total for client in sorted(uploads)}
        names = sorted(set().union(*uploads.values()))
        for client, factors in uploads.items():
            if sorted(factors) != names:
                absent = sorted(set(names) - set(factors))
                raise PayloadError(f"fedavg needs every module of {client}, {absent[0]} is absent")
        mean = {
            name: LowRank(
                sum(share[client] * uploads[client][name].B for client in share),
                sum(share[client] * uploads[client][name].A for client in share),
            )
            for name in names
        }
        return {client: {"global": mean} for client in uploads}

    def receive(self, client, downloads, adapter):
        """The mean replaces the client's own LoRA at once, and is what is validated."""
        client.model.factors = downloads["global"]
