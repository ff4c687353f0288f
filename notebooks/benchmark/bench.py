"""What all parts of the benchmark share: one domain, one frozen model, one process."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from fedecider import RunConfig
from fedecider.adapter import Adapter, Factors
from fedecider.client import Client
from fedecider.direction import LowRank, direction
from fedecider.domains import Domain, read_domain
from fedecider.engine.backbone import Backbone
from fedecider.engine.backbone import load as load_backbone
from fedecider.engine.hidden_states import HiddenStateCache, compute_states
from fedecider.prompts import PromptTemplate, make_template
from notebooks.benchmark import timing


@dataclass
class Bench:
    """One domain and one model, with the settings that every variant runs under."""

    domain: Domain
    backbone: Backbone
    config: RunConfig
    repeats: int = 3
    peer_batch: int = 8

    @cached_property
    def template(self) -> PromptTemplate:
        """The prompt template over the model's tokenizer."""
        backbone = self.backbone
        return make_template(self.config.data.prompt_template, backbone.tokenizer, backbone.start)

    @cached_property
    def matmul_rate(self) -> float:
        """Floating-point operations per second of a large matmul, in the model's own precision."""
        return timing.matmul_rate(self.backbone.dtype, self.backbone.device)

    @property
    def depth(self) -> int:
        """Blocks of the model."""
        return len(self.backbone.layers)

    @property
    def block_flops(self) -> int:
        """Of one token through one block, forward: two per weight of its linear layers."""
        linear = [m for m in self.backbone.layers[0].modules() if isinstance(m, nn.Linear)]
        return 2 * sum(module.weight.numel() for module in linear)

    @property
    def head_flops(self) -> int:
        """Of one row of logits."""
        return 2 * self.backbone.head.numel()

    @property
    def source(self) -> tuple[Path, str, str]:
        """Prepared data, domain and model: what another process loads the same bench by."""
        return self.config.data.prepared, self.domain.name, self.config.backbone.model

    def adapter(self, top_layers: int | None) -> Adapter:
        """A fresh adapter on the top blocks (None: on all); the caller closes it."""
        lora, seed = self.config.lora, self.config.seed
        return Adapter(self.backbone, lora.rank, lora.lora_alpha, lora.targets, top_layers, seed)

    def client(self, adapter: Adapter, peers: int = 0) -> Client:
        """A client before its first round, with random directions of so many peers.

        Its training states are stored already, so that no clock sees them computed.
        """
        client = Client(self.config, adapter, self.domain)
        if peers:
            client.model.peer_directions = random_directions(adapter, peers)
            client.model.alpha = client.method.initial_alpha(client.model, adapter)
        assert len(client.data.train_states)
        return client


def load(prepared: Path, domain: str, model: str, users: int, **settings) -> Bench:
    """A bench on one prepared domain, `users` of it for training, ranking and validation each.

    `settings` are plain names of `RunConfig`.
    """
    settings = {"rank": 8, "lr": 5e-4, "batch_tokens": 1024, "windows_per_user": 1, **settings}
    config = RunConfig.of(
        prepared=prepared,
        folder=prepared,
        dataset="bench",
        method="fedecider",
        model=model,
        **settings,
    )
    wanted = config.backbone
    return Bench(
        read_domain(prepared / domain, train=users, valid=users, test=users),
        load_backbone(wanted.model, wanted.device, wanted.dtype),
        config,
    )


def random_directions(adapter: Adapter, count: int) -> dict[str, Factors]:
    """Directions of `count` peers that do not exist, drawn at random."""
    generator = torch.Generator().manual_seed(0)

    def drawn(pair: LowRank) -> LowRank:
        normal = (torch.randn(part.shape, generator=generator) for part in pair)
        return direction(LowRank(*normal)).to(torch.float32)

    return {
        f"client {index}": {name: drawn(pair) for name, pair in adapter.initial.items()}
        for index in range(count)
    }


class RecomputedStates(HiddenStateCache):
    """The states of another cache, none of them stored: every batch computes its own."""

    def __init__(self, cache: HiddenStateCache):
        self.backbone, self.trees, self.first = cache.backbone, cache.trees, cache.first
        self.sizes = cache.sizes

    def states(self, indices) -> Tensor:
        """States (T, width) below the adapted blocks, computed."""
        return compute_states(self.backbone, [self.trees[index] for index in indices], self.first)
