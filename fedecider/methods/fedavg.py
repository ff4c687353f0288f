"""fedavg (FedIT, arXiv 2305.05644): average A and B, weighted by the number of training targets.

Up and down: A, B. The factors are averaged apart, as FedIT does, so the average of the products
B A is not what comes out; that inexactness belongs to the method.
"""

from collections.abc import Mapping

from fedecider.adapter import Factors
from fedecider.direction import LowRank
from fedecider.methods.local import Downloads, Local, Uploads
from fedecider.wire import PayloadError


class FedAvg(Local):
    """One global LoRA: every client goes on from the weighted mean of all clients' factors."""

    name = "fedavg"
    number_sent = "examples"

    def upload(self, client, adapter, number):
        """The raw factors, those that the method shares in this round."""
        kept_home = set("AB") - set(self.shares(number))
        return {
            name: pair._replace(**dict.fromkeys(kept_home))
            for name, pair in client.model.factors.items()
        }

    def number(self, client):
        """Training targets, by which the mean is weighted."""
        return client.data.training.titles

    def aggregate(self, uploads: Uploads, numbers: dict[str, float], number: int) -> Downloads:
        """sum_i w_i A_i and sum_i w_i B_i with w_i = n_i / sum n, the same for every client."""
        total = sum(numbers[client] for client in uploads)
        mean = average(uploads, {client: numbers[client] / total for client in uploads})
        return {client: {"global": mean} for client in uploads}

    def receive(self, client, downloads, adapter, number):
        """What comes replaces the client's own at once, and is what is validated."""
        (received,) = downloads.values()
        client.model.factors = replaced(client.model.factors, received)


def average(uploads: Uploads, weights: Mapping[str, float | Mapping[str, float]]) -> Factors:
    """sum_i w_i A_i and sum_i w_i B_i of every module; w_i a number or one a module.

    Parts that no client sent stay None. PayloadError if a client lacks a module.
    """
    names = sorted(set().union(*uploads.values()))
    for client, factors in uploads.items():
        if sorted(factors) != names:
            absent = sorted(set(names) - set(factors))
            raise PayloadError(f"averaging needs every module of {client}, {absent[0]} is absent")
    for name in names:
        shapes = {
            tuple(None if x is None else tuple(x.shape) for x in uploads[client][name])
            for client in uploads
        }
        if len(shapes) > 1:
            raise PayloadError(f"averaging needs one rank: the clients' factors of {name} differ")

    def mean(name: str, part: str):
        total = None
        for client in sorted(uploads):
            tensor, weight = getattr(uploads[client][name], part), weights[client]
            if tensor is None:
                return None
            term = tensor * (weight[name] if isinstance(weight, Mapping) else weight)
            total = term if total is None else total + term
        return total

    return {name: LowRank(mean(name, "B"), mean(name, "A")) for name in names}


def replaced(own: Factors, received: Factors) -> Factors:
    """The own factors with those parts replaced that came."""
    found = {}
    for name, (B, A) in received.items():
        found[name] = LowRank(own[name].B if B is None else B, own[name].A if A is None else A)
    return found
