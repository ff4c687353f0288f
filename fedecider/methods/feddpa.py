"""feddpa (Yang et al., arXiv 2403.19211): a global and a local LoRA, mixed by instance.

Up and down: A, B of the global LoRA (fedavg); the local LoRA stays at home. A user gets

    y = W0 x + (1 - l) dW_global x + l dW_local x,   l = c * mean_s cos(h, h_s),

h the last state of the user's prompt under the local LoRA and h_s those of some training histories
of the client; c is the largest weight. Source: the paper and its authors' code. Ours: the first
half of a round's steps trains the local LoRA alone, the second half the global one, so that the
number of steps is that of the other methods (the authors give both all steps, and train the local
one beside the frozen global one); l is rounded to steps of 0.05, at most c, so that users of one
weight are ranked together; instances are whole training rows.
"""

from collections import defaultdict

import torch
from pydantic import Field
from torch.nn.functional import normalize

from fedecider.adapter import Adapter, Factors
from fedecider.config import RunConfig
from fedecider.engine.hidden_states import HiddenStateCache
from fedecider.engine.packing import PromptTree, pack
from fedecider.methods.base import MethodClient, NoSettings, UserModels
from fedecider.methods.fedavg import FedAvg
from fedecider.mixture import ClientModel, initial_alpha
from fedecider.training import ClientData, TrainingReport, generator_of

_STEP = 0.05
_BUDGET = 4096  # tokens per forward


class FedDPA(FedAvg):
    """`model.factors` is the global LoRA, `model.local_lora` the local one."""

    class Settings(NoSettings):
        """Of feddpa."""

        max_weight: float = Field(
            0.5, ge=0, le=1, description="largest weight of the local LoRA at inference"
        )
        instances: int = Field(
            5, ge=1, description="training histories that an instance is compared with"
        )

    name, label = "feddpa", "FedDPA"
    color, order = "#AA4499", 48
    beside = (
        "The adapter is the global LoRA. The local LoRA (`local/...`) is mixed in with a weight "
        "per user, by the similarity of the user's history to those of the client."
    )
    grid = [{"lr": 2e-3, "max_weight": weight} for weight in (0.5, 0.75, 1.0)]

    def __init__(self, config: RunConfig):
        super().__init__(config)
        self._global: Factors | None = None  # that the mixtures below hold
        self._by_weight: dict[float, ClientModel] = {}

    def fit(self, client: MethodClient, round: int) -> TrainingReport:
        """The local LoRA first, then the global one; both start from the same point."""
        model = client.model
        if model.local_lora is None:
            model.local_lora = dict(model.factors)
        model.factors, model.local_lora = model.local_lora, model.factors
        local = client.fit(round, share=(0.0, 0.5))
        model.factors, model.local_lora = model.local_lora, model.factors
        return local.then(client.fit(round, share=(0.5, 1.0)))

    def models_for(
        self, data: ClientData, model: ClientModel, adapter: Adapter, split: str
    ) -> UserModels:
        """Users by their weight of the local LoRA, each group with its mixture."""
        if model.local_lora is None:  # left out of every round so far: there is nothing to mix
            return [(data.users(split), model)]
        groups = defaultdict(list)
        weights = self.local_weights(data, model, adapter, split)
        for user, weight in zip(data.users(split), weights, strict=True):
            rounded = min(round(weight / _STEP) * _STEP, self.settings.max_weight)
            groups[round(rounded, 6)].append(user)
        if self._global is not model.factors:  # a round replaces them
            self._global, self._by_weight = model.factors, {}
        return [
            (users, self._mixture_at(model, adapter, weight))
            for weight, users in sorted(groups.items())
        ]

    def _mixture_at(self, model: ClientModel, adapter: Adapter, weight: float) -> ClientModel:
        """The mixture with that weight; the same object whenever asked again in this round."""
        if weight not in self._by_weight:
            scaled = {name: pair.scaled(1 - weight) for name, pair in model.factors.items()}
            alpha = initial_alpha(adapter, ["local"], self.config.direction.alpha_scope) + weight
            local = adapter.updates(local_lora(model))
            self._by_weight[weight] = ClientModel(scaled, {"local": local}, alpha)
        return self._by_weight[weight]

    @torch.no_grad()
    def local_weights(
        self, data: ClientData, model: ClientModel, adapter: Adapter, split: str
    ) -> list[float]:
        """l of each user of the split, in [0, c]."""
        history, settings = self.config.data.history, self.settings
        adapter.load(local_lora(model))
        prompts = [
            PromptTree(data.catalogue.prompt(user, split, history)) for user in data.users(split)
        ]
        examples = data.training.examples
        generator = generator_of(self.config, f"{data.name} dpa", 0)
        drawn = torch.randperm(len(examples), generator=generator)[: settings.instances]
        instances = [PromptTree(examples[index].ids) for index in sorted(drawn.tolist())]
        asked = _last_states(adapter, prompts, f"{data.name} {split} prompts")
        known = _last_states(adapter, instances, f"{data.name} instances")
        similarity = (asked @ known.T).mean(1).clamp(0, 1)
        return (settings.max_weight * similarity).tolist()


def local_lora(model: ClientModel) -> Factors:
    """The local LoRA of a model that has one; ValueError if it was not trained by feddpa."""
    if model.local_lora is None:
        raise ValueError("this model has no local LoRA")
    return model.local_lora


def _last_states(adapter: Adapter, trees: list[PromptTree], label: str) -> torch.Tensor:
    """Unit-length normed state of each tree's last token, (trees, width) float64."""
    states = HiddenStateCache(adapter.backbone, trees, adapter.first, label)
    parts = []
    for indices in pack(states.sizes, _BUDGET):
        hidden = adapter.hidden(states.batch(indices))
        last = torch.tensor([trees[index].size for index in indices]).cumsum(0) - 1
        parts.append(hidden[last.to(hidden.device)].double().cpu())
    return normalize(torch.cat(parts), dim=-1)
