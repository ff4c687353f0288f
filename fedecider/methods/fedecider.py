"""fedecider (arXiv 2602.16034): share directions, mix them by personal learned weights.

Up: D. Down: (n - 1) x D. A client shares the direction of its update, never magnitude, weights or
factors as trained; the server passes directions on and averages nothing. Each client learns, on its
own data, its weights alpha together with its own LoRA (method, section 3).

The ablations are two settings under their names: what is `shared` (direction or update, the latter
with gamma in B), and the `weights` (learned or uniform, c / (n - 1) each).
"""

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from fedecider.adapter import Adapter, Factors
from fedecider.config import RunConfig
from fedecider.direction import NormKind, direction
from fedecider.direction_noise import noised
from fedecider.methods.base import (
    Downloads,
    Family,
    Method,
    MethodClient,
    NoSettings,
    Upload,
    Uploads,
)
from fedecider.mixture import ClientModel, initial_alpha
from fedecider.training import TrainingReport, generator_of


class FeDecider(Method):
    """Own LoRA + sum over other clients of alpha_ij D_j, alpha_ij learned."""

    class Settings(NoSettings):
        """Of fedecider and its ablations."""

        shared: Literal["direction", "update"] = Field(
            "direction", description="what peers get: D_j, or dW_j with its scale"
        )
        weights: Literal["learned", "uniform"] = Field(
            "learned", description="alpha: learned by each client, or the same fixed for all"
        )
        uniform_weight: float = Field(1.0, description="sum of the uniform weights")

    name, label = "fedecider", "FeDecider"
    family: ClassVar[Family] = "federated"
    color, order = "#D55E00", 60
    beside = (
        "What peers sent (`from <client>/...`) is added to every adapted layer, weighted by "
        "`alpha`: y += sum_j alpha_j B_j A_j x."
    )
    grid = [
        {"lr": 2e-3, "alpha_lr": 0.02},
        {"lr": 2e-3, "alpha_lr": 0.2},
        {"lr": 2e-3, "alpha_init": 0.15, "alpha_lr": 0.05},
    ]

    def __init__(self, config: RunConfig):
        super().__init__(config)
        self.learns_alpha = self.settings.weights == "learned"

    def payload_norm(self, *, up: bool) -> NormKind | None:
        """Directions travel, up unless the server is to extract them; an update has any norm."""
        if self.settings.shared == "update" or (up and self.config.direction.send == "update"):
            return None
        return self.config.direction.norm

    def directions(self, updates: Factors) -> Factors:
        """Direction of every module in canonical form; a module with a zero update is absent."""
        config = self.config.direction
        directions = {
            name: direction(update, config.norm, config.truncate)
            for name, update in updates.items()
        }
        return {name: pair for name, pair in directions.items() if pair is not None}

    def fit(self, client: MethodClient, round: int) -> TrainingReport:
        """Directions of the previous round take the place of older ones; alpha stays."""
        model = client.model
        if client.pending_directions:
            model.peer_directions, client.pending_directions = client.pending_directions, {}
        if any(model.peer_directions.values()) and model.alpha is None:
            model.alpha = self.initial_alpha(model, client.adapter)
        return client.fit(round, learns_alpha=self.learns_alpha)

    def initial_alpha(self, model: ClientModel, adapter: Adapter) -> Tensor:
        """Weights of the peers before any is learned, (groups, sources).

        A share of the own norm; `alpha_init` itself for updates, which have a size already.
        """
        config, settings = self.config.direction, self.settings
        sources, own = sorted(model.peer_directions), adapter.updates(model.factors)
        if settings.shared == "direction":
            alpha = initial_alpha(adapter, sources, config.alpha_scope, config.alpha_init, own)
        else:
            alpha = initial_alpha(adapter, sources, config.alpha_scope) + config.alpha_init
        if settings.weights == "uniform":
            alpha = torch.full_like(alpha, settings.uniform_weight / len(model.peer_directions))
        return alpha

    def upload(self, client: MethodClient, round: int) -> Upload:
        """D_i, or gamma B_i A_i where the update is shared or the server extracts the direction."""
        updates, config = client.adapter.updates(client.model.factors), self.config.direction
        if self.payload_norm(up=True) is None:
            return Upload(updates)
        directions = self.directions(updates)
        if config.direction_noise:
            generator = generator_of(self.config, f"{client.name} noise", round)
            directions = {
                name: noised(pair, config.direction_noise, generator, config.norm)
                for name, pair in directions.items()
            }
        return Upload(directions)

    def aggregate(self, uploads: Uploads, round: int, absent: Sequence[str] = ()) -> Downloads:
        """Everyone gets everyone else's direction; nothing is averaged.

        Of an absent client everyone gets that it has none, so its weight waits as it is.
        """
        factors: dict[str, Factors] = {client: {} for client in absent}
        factors |= {client: upload.factors for client, upload in uploads.items()}
        if self.payload_norm(up=True) is None and self.payload_norm(up=False) is not None:
            factors = {client: self.directions(update) for client, update in factors.items()}
        return {
            client: {other: factors[other] for other in factors if other != client}
            for client in factors
        }

    def receive(self, client: MethodClient, downloads: dict[str, Factors], round: int) -> None:
        """Kept for the next round: this round's weights belong to this round's directions."""
        client.pending_directions = downloads


class WithoutDirection(FeDecider):
    """Ablation: raw updates dW_j, learned weights; a weight's meaning changes with the scale."""

    class Settings(FeDecider.Settings):
        """With the scale of the updates."""

        shared: Literal["update"] = "update"

    name, label, family = "fedecider-no-direction", "– w/o direction", "ablation"
    color, order = "#DDAA33", 61


class WithoutPersonalization(FeDecider):
    """Ablation: directions with uniform fixed weights c / (n - 1)."""

    class Settings(FeDecider.Settings):
        """With the same weights for all."""

        weights: Literal["uniform"] = "uniform"

    name, label, family = "fedecider-no-personalization", "– w/o personalization", "ablation"
    color, order = "#BB5566", 62
    grid = [{"lr": 2e-3, "uniform_weight": weight} for weight in (0.3, 1.0, 3.0)]


class WithoutBoth(FeDecider):
    """Ablation: uniform fixed weights over raw updates."""

    class Settings(FeDecider.Settings):
        """Neither."""

        shared: Literal["update"] = "update"
        weights: Literal["uniform"] = "uniform"

    name, label, family = "fedecider-no-both", "– w/o both", "ablation"
    color, order = "#997700", 63
    grid = [{"lr": 2e-3, "uniform_weight": weight} for weight in (0.3, 1.0, 3.0)]
