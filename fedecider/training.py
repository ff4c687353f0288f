"""Local training and validation of one client on its own data.

AdamW, fresh each round, on the mean loss of the target tokens; A, B and alpha move jointly, and the
learning rates fall linearly over all rounds. Hidden states below the first adapted block are
computed once and kept on disk (`engine.hidden_states`).
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from fedecider.adapter import Adapter
from fedecider.config import RunConfig
from fedecider.domains import Domain
from fedecider.engine.hidden_states import ConcatCache, HiddenStateCache
from fedecider.engine.memory import peak_memory, reset_peak
from fedecider.engine.packing import pack
from fedecider.losses import LOSSES, Loss
from fedecider.mixture import ClientModel, Mixture
from fedecider.prompts import Catalogue, ExampleSet, PromptTemplate

Progress = Callable[[int, float], None]  # tokens of a step, mean loss of the round so far
_VALIDATION_TOKENS = 4096  # tokens per forward


class TrainingData(Protocol):
    """What `fit` trains on: examples and their hidden states."""

    @property
    def training(self) -> ExampleSet:
        """The examples."""
        ...

    @property
    def train_states(self) -> HiddenStateCache | ConcatCache:
        """Hidden states of the examples' inputs, below the first adapted block."""
        ...


class ClientData:
    """A domain in tokens, with the hidden states of its training and validation sequences."""

    def __init__(
        self, domain: Domain, adapter: Adapter, template: PromptTemplate, config: RunConfig
    ):
        self.name, self.domain, self.config, self.template = domain.name, domain, config, template
        self.catalogue = Catalogue(domain, template)
        history, windows = config.data.history, config.data.windows_per_user
        self.training = ExampleSet(
            [
                example
                for user in domain.users["train"]
                for example in self.catalogue.training_examples(user, history, windows)
            ]
        )
        if not self.training.examples:
            raise ValueError(f"domain {domain.name} has no user with two training items")
        self.valid_users, self.test_users = domain.users["valid"], domain.users["test"]
        self.validation = ExampleSet(
            [self.catalogue.validation_example(user, history) for user in self.valid_users]
        )
        self._adapter = adapter

    def users(self, split: str) -> list[str]:
        """Sampled users of a split, sorted."""
        return self.domain.users[split]

    @cached_property
    def train_states(self) -> HiddenStateCache:
        """Hidden states of the training inputs, kept on disk."""
        return self._states(self.training, "train")

    @cached_property
    def valid_states(self) -> HiddenStateCache:
        """Hidden states of the validation inputs, kept on disk."""
        return self._states(self.validation, "valid")

    def _states(self, examples: ExampleSet, split: str) -> HiddenStateCache:
        label = f"{self.name} {split} states"
        return HiddenStateCache(self._adapter.backbone, examples.trees, self._adapter.first, label)


class PooledData:
    """The training data of several clients as one."""

    def __init__(self, parts: Sequence[ClientData]):
        self.parts = parts
        self.training = ExampleSet([e for part in parts for e in part.training.examples])

    @cached_property
    def train_states(self) -> ConcatCache:
        """Hidden states of all parts, where each keeps its own."""
        return ConcatCache([part.train_states for part in self.parts])


@dataclass
class TrainingReport:
    """What a round of local training tells: losses (M,) in nats per token, and its cost."""

    losses: Tensor
    steps: int
    seconds: float
    memory: float  # peak, MiB

    @property
    def train_loss(self) -> float:
        """Mean per token over the round, each at the time of its step."""
        return self.losses.double().mean().item()

    def then(self, later: "TrainingReport") -> "TrainingReport":
        """The two as one."""
        return TrainingReport(
            torch.cat([self.losses, later.losses]),
            self.steps + later.steps,
            self.seconds + later.seconds,
            max(self.memory, later.memory),
        )


def generator_of(config: RunConfig, name: str, round: int) -> torch.Generator:
    """The generator of one client in one round: resuming needs no stored generator state."""
    words = [config.seed, round, *name.encode()]
    seed = int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0] >> 1)
    return torch.Generator().manual_seed(seed)


def fit(
    data: TrainingData,
    model: ClientModel,
    adapter: Adapter,
    config: RunConfig,
    round: int,
    name: str,
    *,
    factors: str = "AB",
    learns_alpha: bool = False,
    share: tuple[float, float] = (0.0, 1.0),
    penalty: Callable[[], Tensor] | None = None,
    progress: Progress | None = None,
) -> TrainingReport:
    """Train `model` in place for one round (1-based), or for a `share` of its steps.

    `name` seeds the order of the data; `factors` are those of A and B that are trained; `penalty`
    is added to the loss. The first `alpha_warmup` steps of a round move alpha alone. Of steps that
    a share cuts in two, the earlier share has the step (of a single step the first share has it).
    """
    reset_peak(adapter.backbone.device)
    begin = time.perf_counter()
    training, states = config.training, data.train_states
    generator = generator_of(config, name, round)
    packs: list[list[int]] = []
    for _ in range(training.local_epochs):
        packs += pack(states.sizes, training.batch_tokens, generator)
    steps = range(math.ceil(share[0] * len(packs)), math.ceil(share[1] * len(packs)))
    mixture = model.mixture(adapter, config.direction)
    learns_alpha = learns_alpha and not mixture.empty
    weights, optimizer = _optimizer(adapter, config, factors, mixture if learns_alpha else None)
    mixture.alpha.requires_grad_(learns_alpha)
    rates = [group["lr"] for group in optimizer.param_groups]
    loss_of, losses = LOSSES[training.loss], []
    total = count = 0.0
    with mixture:
        for step in steps:
            done = (round - 1 + step / len(packs)) / training.rounds
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * (1 - done * (1 - training.lr_end))
            step_losses = token_losses(adapter, states, data.training, packs[step], loss_of)
            loss = step_losses.mean()
            (loss if penalty is None else loss + penalty()).backward()
            if learns_alpha and step < config.direction.alpha_warmup:
                for weight in weights:
                    weight.grad = None
            torch.nn.utils.clip_grad_norm_(weights, training.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            if learns_alpha:
                mixture.project()
            losses.append(step_losses.detach())
            if progress is not None:
                total, count = total + losses[-1].sum().item(), count + len(losses[-1])
                progress(sum(states.sizes[index] for index in packs[step]), total / count)
    model.factors = adapter.factors()
    if not mixture.empty:
        model.alpha = mixture.alpha.detach().cpu().clone()
    seconds = time.perf_counter() - begin
    return TrainingReport(
        torch.cat(losses) if losses else torch.zeros(0),
        len(losses),
        seconds,
        peak_memory(adapter.backbone.device),
    )


def _optimizer(
    adapter: Adapter, config: RunConfig, factors: str, learned: Mixture | None
) -> tuple[list[torch.nn.Parameter], torch.optim.Optimizer]:
    """The factors that are trained, and AdamW over them and, where learned, alpha."""
    training = config.training
    weights = adapter.parameters(factors)
    for parameter in adapter.parameters():
        parameter.requires_grad_(False)
    for parameter in weights:
        parameter.requires_grad_(True)
    groups = [{"params": weights, "lr": training.lr, "weight_decay": training.weight_decay}]
    if learned is not None:
        alpha_lr = config.direction.alpha_lr
        groups.append({"params": [learned.alpha], "lr": alpha_lr, "weight_decay": 0.0})
    return weights, torch.optim.AdamW(groups)


def token_losses(
    adapter: Adapter,
    states: HiddenStateCache | ConcatCache,
    examples: ExampleSet,
    indices: Sequence[int],
    loss: Loss,
) -> Tensor:
    """The loss of every target token of the examples with these indices, (M,)."""
    batch = states.batch(indices)
    hidden = adapter.hidden(batch)
    targets = examples.targets(indices, batch).to(adapter.backbone.device)
    return loss(hidden, adapter.backbone.head, targets)


@torch.no_grad()
def validation_loss(
    data: ClientData,
    models: Sequence[tuple[list[str], ClientModel]],
    adapter: Adapter,
) -> float:
    """Mean loss per token of the validation titles under the model of each user.

    `models` are the users of the validation split with their models (`Method.models_for`).
    """
    config, loss = data.config, LOSSES[data.config.training.loss]
    total = count = 0.0
    for model, indices in _by_model(data.valid_users, models):
        sizes = [data.valid_states.sizes[index] for index in indices]
        with model.mixture(adapter, config.direction):
            for packed in pack(sizes, _VALIDATION_TOKENS):
                rows = [indices[position] for position in packed]
                losses = token_losses(adapter, data.valid_states, data.validation, rows, loss)
                total, count = total + losses.double().sum().item(), count + len(losses)
    return total / count


def _by_model(
    users: list[str], models: Sequence[tuple[list[str], ClientModel]]
) -> Iterator[tuple[ClientModel, list[int]]]:
    """Each model with the indices of its users among all."""
    index = {user: row for row, user in enumerate(users)}
    for group, model in models:
        yield model, [index[user] for user in group]
