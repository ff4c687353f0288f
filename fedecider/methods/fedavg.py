"""fedavg (FedIT, arXiv 2305.05644): average A and B, weighted by the number of training targets.

Up and down: A, B. The factors are averaged separately, as FedIT does, so the average of the
products B A is not what comes out; that inexactness belongs to the method.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from fedecider.adapter import Factors
from fedecider.config import RunConfig
from fedecider.direction import LowRank
from fedecider.methods.base import Downloads, Method, MethodClient, Upload, Uploads, sent_metric
from fedecider.wire import Metric, PayloadError

_MOST_EXAMPLES = 10**9  # of a client whose configuration sets no bound


class FedAvg(Method):
    """One global LoRA: every client goes on from the weighted mean of all clients' factors."""

    name, label, family = "fedavg", "FedAvg", "federated"
    color, order = "#0072B2", 40
    sends_whole_loras = True

    @property
    def metrics(self) -> dict[str, Metric]:
        """The number of training targets, at most what the configuration lets a client have."""
        return {"examples": Metric("count", most_examples(self.config))}

    def upload(self, client: MethodClient, round: int) -> Upload:
        """The raw factors that the method shares in this round, and the number of targets."""
        kept_home: dict[str, Any] = dict.fromkeys(set("AB") - set(self.shared_factors(round)))
        factors = {name: pair._replace(**kept_home) for name, pair in client.model.factors.items()}
        return Upload(factors, {"examples": client.data.training.num_targets})

    def aggregate(self, uploads: Uploads, round: int, absent: Sequence[str] = ()) -> Downloads:
        """sum_i w_i A_i and sum_i w_i B_i with w_i = n_i / sum n, the same for every client."""
        mean = average(uploads, example_shares(uploads))
        return {client: {"global": mean} for client in (*uploads, *absent)}

    def receive(self, client: MethodClient, downloads: dict[str, Factors], round: int) -> None:
        """What comes replaces the client's own at once, and is what is validated."""
        if len(downloads) != 1:
            sources = ", ".join(downloads)
            raise PayloadError(f"one LoRA is expected from the server, not those of {sources}")
        (received,) = downloads.values()
        client.model.factors = replaced(client.model.factors, received)


def most_examples(config: RunConfig) -> int:
    """Largest number of training targets that a client can have."""
    data = config.data
    if data.train_users is None or data.windows_per_user is None:
        return _MOST_EXAMPLES
    per_window = data.history if data.prompt_template == "history" else 1
    return min(_MOST_EXAMPLES, data.train_users * data.windows_per_user * per_window)


def example_shares(uploads: Uploads) -> dict[str, float]:
    """n_i / sum n of every client's number of training targets."""
    examples = sent_metric(uploads, "examples")
    total = sum(examples.values())
    return {client: count / total for client, count in examples.items()}


def average(uploads: Uploads, weights: Mapping[str, float | Mapping[str, float]]) -> Factors:
    """sum_i w_i A_i and sum_i w_i B_i of every module; w_i a number, or one per module.

    Parts that no client sent stay None. PayloadError if a client lacks a module, or if ranks
    differ.
    """
    factors = {client: upload.factors for client, upload in sorted(uploads.items())}
    names = sorted(set().union(*factors.values()))
    for client, modules in factors.items():
        if sorted(modules) != names:
            absent = sorted(set(names) - set(modules))
            message = f"averaging needs every module of {client}, {absent[0]} is absent"
            raise PayloadError(message, client)
    for name in names:
        shapes = {
            tuple(None if part is None else tuple(part.shape) for part in modules[name])
            for modules in factors.values()
        }
        if len(shapes) > 1:
            raise PayloadError(f"averaging needs one rank: the clients' factors of {name} differ")

    def mean(name: str, part: str) -> Tensor | None:
        total = None
        for client, modules in factors.items():
            tensor, weight = getattr(modules[name], part), weights[client]
            if tensor is None:
                return None
            term = tensor * (weight[name] if isinstance(weight, Mapping) else weight)
            total = term if total is None else total + term
        return total

    # A part that nobody sent is None; LowRank's type is that of whole pairs.
    return {name: LowRank(mean(name, "B"), mean(name, "A")) for name in names}  # type: ignore[arg-type]


def replaced(own: Factors, received: Factors) -> Factors:
    """The own factors with those parts replaced that came."""
    return {
        name: LowRank(own[name].B if B is None else B, own[name].A if A is None else A)
        for name, (B, A) in received.items()
    }
