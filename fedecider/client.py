"""One client: its domain, its personal model, and what it does in a round.

A client knows the configuration, the frozen model and its own domain. All that it hands out and
takes in are bytes (`wire`), so it can live in a process or on a machine of its own.
"""

import copy
import math
from dataclasses import dataclass
from typing import Any

import torch

from fedecider import wire
from fedecider.adapter import Adapter, Factors
from fedecider.config import RunConfig
from fedecider.domains import Domain
from fedecider.engine.backbone import Backbone
from fedecider.gram import gram, norms
from fedecider.methods import make
from fedecider.methods.base import payload_spec
from fedecider.mixture import ClientModel
from fedecider.prompts import make_template
from fedecider.training import ClientData, Progress, TrainingReport, fit, validation_loss


def make_adapter(config: RunConfig, backbone: Backbone) -> Adapter:
    """The LoRA adapter of a run, to be closed by the caller."""
    lora = config.lora
    return Adapter(backbone, lora.rank, lora.lora_alpha, lora.targets, lora.top_layers, config.seed)


@dataclass
class Best:
    """The state with the lowest validation loss so far."""

    model: ClientModel
    loss: float = float("inf")
    round: int = 0


class Client:
    """A client between rounds.

    `pending_directions` wait for the next round to begin; `best` is the state that validation
    chose, `report` what the last training told. What a method of it raises leaves the client out
    of the round; then `fall_back` gives it its model of before, with which it may still receive
    and validate.
    """

    def __init__(self, config: RunConfig, adapter: Adapter, domain: Domain):
        self.config, self.adapter, self.name = config, adapter, domain.name
        self.method = make(config)
        backbone = adapter.backbone
        template = make_template(config.data.prompt_template, backbone.tokenizer, backbone.start)
        self.data = ClientData(domain, adapter, template, config)
        self.model = ClientModel(dict(adapter.initial))
        self.pending_directions: dict[str, Factors] = {}
        self.best = Best(self.model)
        self.report = TrainingReport(torch.zeros(0), 0, 0.0, 0.0)
        self.progress: Progress | None = None
        self.begin_round()

    # A round, in this order

    def begin_round(self) -> None:
        """Remember the state to fall back on; `local_update` does so by itself."""
        # Training replaces a model's parts and changes none of them in place.
        self._before = copy.copy(self.model), self.pending_directions

    def local_update(self, round: int) -> bytes:
        """Train locally in a round (1-based); the payload for the server, empty if none is sent.

        Raises FloatingPointError if training diverged.
        """
        self.begin_round()
        self.report = self.method.fit(self, round)
        self.refuse_diverged(round)
        upload = self.method.upload(self, round)
        if upload is None:
            return b""
        dtype = self.config.direction.payload_dtype
        return wire.encode(upload.factors, upload.metrics, dtype, self.method.payload_norm(up=True))

    def fall_back(self) -> None:
        """Back to the model and the pending directions with which the round began."""
        model, self.pending_directions = self._before
        self.model = copy.copy(model)

    def receive(self, round: int, payloads: dict[str, bytes]) -> None:
        """Take in what the server sends, by source.

        Raises `wire.PayloadError` for a payload that must not be used.
        """
        spec = payload_spec(self.config, self.method, self.adapter.shapes, round, up=False)
        downloads = {
            source: wire.decode(payload, source, spec)
            for source, payload in sorted(payloads.items())
        }
        if downloads:
            self.method.receive(self, downloads, round)

    def validate(self, round: int) -> float:
        """Validation loss, nats per token, of the model that users would get now; the best is kept.

        Raises FloatingPointError if it is not finite.
        """
        models = self.method.models_for(self.data, self.model, self.adapter, "valid")
        loss = validation_loss(self.data, models, self.adapter)
        self._refuse("validation loss", loss, round)
        if loss < self.best.loss:
            self.best = Best(copy.copy(self.model), loss, round)
        return loss

    # Its parts

    def fit(self, round: int, **options: Any) -> TrainingReport:
        """Local training on the own data; options of `training.fit`."""
        options.setdefault("progress", self.progress)
        return fit(self.data, self.model, self.adapter, self.config, round, self.name, **options)

    def update_norm(self) -> float:
        """Frobenius norm of the own update over all adapted modules."""
        sizes = norms(gram([self.adapter.updates(self.model.factors)]))
        return math.sqrt(sum(size.double().square().item() for size in sizes.values()))

    def refuse_diverged(self, round: int) -> None:
        """FloatingPointError unless the training loss and the update's norm are of use."""
        self._refuse("training", self.report.train_loss, round)
        self._refuse("the update's norm", self.update_norm(), round)
        largest = max(part.norm().item() for pair in self.model.factors.values() for part in pair)
        # Nobody starts a round beyond the bound of payloads, so its own training led beyond twice
        # of it.
        bounded = largest <= 2 * wire.LARGEST_FACTOR
        self._refuse("the update's norm", largest if bounded else math.inf, round)

    def _refuse(self, what: str, value: float, round: int) -> None:
        if not math.isfinite(value):
            raise FloatingPointError(
                f"{what} of {self.name} is {value} after round {round}: "
                f"the learning rate {self.config.training.lr:g} may be too high"
            )

    def alphas(self) -> list[dict[str, Any]]:
        """The learned weights: one row (client, source, layer, alpha) per module and source."""
        mixture = self.model.mixture(self.adapter, self.config.direction)
        if mixture.empty or not self.method.learns_alpha:
            return []
        return [
            {"client": self.name, "source": source, "layer": layer, "alpha": alpha}
            for layer, weights in mixture.per_module().items()
            for source, alpha in zip(mixture.sources, weights.tolist(), strict=True)
        ]
