"""One client: its data as tokens, its state between rounds, its local training."""

import math
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from fedecider.adapter import Adapter, Factors
from fedecider.config import RunConfig
from fedecider.domains import Domain
from fedecider.likelihood import nll
from fedecider.mixture import Mixture
from fedecider.ranking import Catalogue
from fedecider.sequences import Example, TrainingSet, pack
from fedecider.trunk import Joined, Trunk


class ClientData:
    """A domain in tokens, with the trunk states of its training and validation sequences."""

    def __init__(self, domain: Domain, adapter: Adapter, form, config: RunConfig):
        self.name, self.domain, self.config, self.form = domain.name, domain, config, form
        self.catalogue = Catalogue(domain, form)
        tokens = self.catalogue.tokens
        examples: list[Example] = []
        for user in domain.users["train"]:
            titles = [tokens[item] for item in domain.train[user]]
            examples += form.examples(titles, config.history)[: config.windows]
        if not examples:
            raise ValueError(f"domain {domain.name} has no user with two training items")
        self.training = TrainingSet(examples)
        self.valid_users, self.test_users = domain.users["valid"], domain.users["test"]
        held_out = []
        for user in self.valid_users:
            prompt = self.catalogue.prompt(user, "valid", config.history)
            piece = tokens[domain.valid[user]] + [form.end]
            targets = list(range(len(prompt), len(prompt) + len(piece)))
            held_out.append(Example(prompt + piece, targets, 1))
        self.validation = TrainingSet(held_out)
        self._adapter = adapter

    @cached_property
    def train_trunk(self) -> Trunk:
        """Trunk states of the training rows, kept on disk."""
        return self._trunk(self.training, "train")

    @cached_property
    def valid_trunk(self) -> Trunk:
        """Trunk states of the validation rows, kept on disk."""
        return self._trunk(self.validation, "valid")

    def _trunk(self, part: TrainingSet, label: str) -> Trunk:
        first = self._adapter.first
        return Trunk(self._adapter.backbone, part.rows, first, f"{self.name} {label} states")


class PooledData:
    """The training data of several clients as one."""

    def __init__(self, parts: list[ClientData]):
        self.parts, self.config = parts, parts[0].config
        self.training = TrainingSet([one for part in parts for one in part.training.examples])

    @cached_property
    def train_trunk(self) -> Trunk:
        """Trunk states of all parts, where each keeps its own."""
        return Joined([part.train_trunk for part in self.parts])


@dataclass
class ClientModel:
    """What a client's personal model is made of: own factors, foreign directions, their weights."""

    factors: Factors
    foreign: dict[str, Factors] = field(default_factory=dict)
    alpha: Tensor | None = None
    personal: Factors | None = None  # a second LoRA that stays at home, where a method has one

    def mixture(self, adapter: Adapter, config: RunConfig) -> Mixture | None:
        """Put the model into the adapter; enter the result to add the foreign directions."""
        adapter.load(self.factors)
        if not any(self.foreign.values()):
            return None
        return Mixture(adapter, self.foreign, self.alpha, config.alpha_scope, config.alpha_sign)


@dataclass
class Client:
    """A client between rounds; `incoming` waits for the next round to begin."""

    data: ClientData
    model: ClientModel
    incoming: dict[str, Factors] = field(default_factory=dict)
    best: ClientModel | None = None
    best_loss: float = float("inf")
    best_round: int = 0
    train_loss: float = float("nan")  # of the last round, nats a token
    label: str = ""  # instead of the domain's name

    @property
    def name(self) -> str:
        """The domain's name, or the label."""
        return self.label or self.data.name


def entered(mixture: Mixture | None):
    """The mixture as a context, or an empty one where a model has no foreign directions."""
    return mixture if mixture is not None else nullcontext()


def seeded(config: RunConfig, name: str, number: int) -> torch.Generator:
    """The generator of one client in one round: resuming needs no stored generator state."""
    words = [config.seed, number, *name.encode()]
    seed = int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0] >> 1)
    return torch.Generator().manual_seed(seed)


def train(client: Client, adapter: Adapter, method, number: int, progress=None) -> dict:
    """Local training of one client in round `number` (1-based): A, B and alpha jointly.

    AdamW, fresh each round, on the mean negative log-likelihood of target tokens plus the method's
    own penalty; the rate falls linearly over all rounds. The first `alpha_warmup` steps move alpha
    alone. Updates `client.model` in place and returns train_loss (mean a token, over the round) and
    the number of steps.
    """
    data, config = client.data, client.data.config
    sizes = [tree.size for tree in data.train_trunk.trees]
    generator = seeded(config, client.name, number)
    packs = []
    for _ in range(config.local_epochs):
        packs += pack(sizes, config.batch_tokens, generator)
    found: list[Tensor] = []
    total = count = 0.0

    def note(indices: list[int], losses: Tensor) -> None:
        nonlocal total, count
        found.append(losses)
        if progress is not None:
            total, count = total + losses.sum().item(), count + len(losses)
            progress(sum(sizes[index] for index in indices), total / count)

    for place, (low, high) in enumerate(method.stages(client)):
        if place:
            method.switch(client)
        # Rounded up: of a single step the first stage has it.
        some = range(math.ceil(low * len(packs)), math.ceil(high * len(packs)))
        _steps(client, adapter, method, number, packs, some, note)
    client.train_loss = torch.cat(found).double().mean().item()
    return {"train_loss": client.train_loss, "steps": len(found)}


def _steps(client, adapter: Adapter, method, number: int, packs, some: range, note) -> None:
    """The given steps of a round, one pack of examples each."""
    data, model = client.data, client.model
    config = data.config
    if any(model.foreign.values()) and model.alpha is None:
        model.alpha = method.weights(model, adapter)
    mixture = model.mixture(adapter, config)
    weights = adapter.parameters(method.trains(number))
    groups = [{"params": weights, "lr": config.lr, "weight_decay": config.weight_decay}]
    learned = mixture is not None and method.learns_alpha
    if learned:
        groups.append({"params": [mixture.alpha], "lr": config.alpha_lr, "weight_decay": 0.0})
    elif mixture is not None:
        mixture.alpha.requires_grad_(False)
    for parameter in adapter.parameters():
        parameter.requires_grad_(False)
    for parameter in weights:
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(groups)
    rates = [group["lr"] for group in groups]
    with entered(mixture):
        for step in some:
            done = (number - 1 + step / len(packs)) / config.rounds
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * (1 - done * (1 - config.lr_end))
            losses = token_losses(adapter, data.train_trunk, data.training, packs[step])
            loss = losses.mean()
            penalty = method.penalty(client, adapter)
            (loss if penalty is None else loss + penalty).backward()
            if learned and step < config.alpha_warmup:
                for parameter in weights:
                    parameter.grad = None
            torch.nn.utils.clip_grad_norm_(weights, config.clip)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            if learned:
                mixture.project()
            note(packs[step], losses.detach())
    model.factors = adapter.factors()
    if mixture is not None:
        model.alpha = mixture.alpha.detach().cpu().clone()


def token_losses(adapter: Adapter, trunk: Trunk, part: TrainingSet, indices) -> Tensor:
    """-log p of every target token of the given examples, (M,)."""
    device = adapter.backbone.device
    forest = trunk.forest(indices)
    hidden = adapter.hidden(trunk.cat(indices, forest), forest)
    where, what = part.targets(indices, forest)
    return nll(hidden[where.to(device)], adapter.backbone.head, what.to(device))


@torch.no_grad()
def validation_loss(client: Client, adapter: Adapter, method) -> float:
    """Mean -log p a token of the validation titles under the model each user is served with."""
    data = client.data
    place = {user: index for index, user in enumerate(data.valid_users)}
    sizes = [tree.size for tree in data.valid_trunk.trees]
    total = count = 0.0
    for users, model in method.served(data, client.model, adapter, "valid"):
        some = [place[user] for user in users]
        with entered(model.mixture(adapter, data.config)):
            for packed in pack([sizes[index] for index in some], 4096):
                indices = [some[index] for index in packed]
                losses = token_losses(adapter, data.valid_trunk, data.validation, indices)
                total, count = total + losses.double().sum().item(), count + len(losses)
    return total / count
