"""What a ranker is given, and what it gives back."""

import typing
from dataclasses import dataclass, field
from typing import Any, Literal

from fedecider.adapter import Adapter
from fedecider.config import RankingConfig
from fedecider.methods.base import Method, UserModels
from fedecider.mixture import ClientModel
from fedecider.training import ClientData

# "sampled": the stored 1 + 99 lists; "catalogue": all items of the domain.
Protocol = Literal["sampled", "catalogue"]
Ranks = tuple[list[int], dict[str, Any]]


@dataclass(frozen=True, eq=False)
class Ranking:
    """A client's chosen model, and the users that it ranks for."""

    data: ClientData
    model: ClientModel
    adapter: Adapter
    method: Method
    _models: dict[str, UserModels] = field(default_factory=dict, init=False, repr=False)

    @property
    def config(self) -> RankingConfig:
        """Settings of rankers."""
        return self.data.config.ranking

    def models_for(self, split: str) -> UserModels:
        """The model of each user of the split, group by group; all rankers get the same."""
        if split not in self._models:
            models = self.method.models_for(self.data, self.model, self.adapter, split)
            self._models[split] = models
        return self._models[split]

    def prompts(self, users: list[str], split: str) -> list[list[int]]:
        """Prompts of users, for the item of this split."""
        history = self.data.config.data.history
        return [self.data.catalogue.prompt(user, split, history) for user in users]


class Ranker(typing.Protocol):
    """A way to rank items by a language model."""

    name: str
    protocol: Protocol

    def rank(self, ranking: Ranking) -> Ranks:
        """Ranks of the test users in the order of `data.test_users`, and validation's choices."""
        ...
