"""What a ranker is given, and what it gives back."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

from fedecider.adapter import Adapter
from fedecider.config import RankingConfig
from fedecider.methods.base import Method, Served
from fedecider.mixture import ClientModel
from fedecider.training import ClientData

Ranks = tuple[list[int], dict[str, Any]]


@dataclass(frozen=True, eq=False)
class Ranking:
    """A client's chosen model, and the users that it ranks for."""

    data: ClientData
    model: ClientModel
    adapter: Adapter
    method: Method

    @property
    def config(self) -> RankingConfig:
        """Settings of rankers."""
        return self.data.config.ranking

    @lru_cache  # noqa: B019 (lives as long as the ranking of one client)
    def served(self, split: str) -> Served:
        """The model that serves each user of the split, group by group."""
        return self.method.models_for(self.data, self.model, self.adapter, split)

    def prompts(self, users: list[str], split: str) -> list[list[int]]:
        """Prompts of users, for the item of this split."""
        history = self.data.config.data.history
        return [self.data.catalogue.prompt(user, split, history) for user in users]


class Ranker(Protocol):
    """A way to rank items by a language model."""

    name: str
    label: str
    protocol: str  # "sampled": the stored 1 + 99 lists; "catalogue": all items of the domain

    def rank(self, ranking: Ranking) -> Ranks:
        """Ranks of the test users in the order of `data.test_users`, and validation's choices."""
        ...
