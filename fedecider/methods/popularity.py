"""popularity: items by their number of training interactions, the line that a method has to beat.

Counted over all users of the domain, not only the sampled ones. No language model, no federation.
"""

from collections.abc import Sequence
from typing import Any

from fedecider.domains import Domain
from fedecider.methods.base import Method
from fedecider.metrics import rank_of


class Popularity(Method):
    """Ranks every user's items alike."""

    name, label, family = "popularity", "Popularity", "no language model"
    color, order = "#000000", 0
    trains = False
    grid = []

    def rank(
        self, domain: Domain, protocols: Sequence[str]
    ) -> tuple[dict[str, list[int]], dict[str, Any]]:
        """Ranks of the test users, over the whole catalogue or the stored 1 + 99 lists."""
        counts = domain.popularity
        ranks: dict[str, list[int]] = {protocol: [] for protocol in protocols}
        for protocol in protocols:
            for user in domain.users["test"]:
                target = domain.target(user, "test")
                if protocol == "catalogue":
                    rank = rank_of(counts.to_numpy(float), counts.index.get_loc(target))
                else:
                    listed = [target, *domain.negatives["test", user]]
                    rank = rank_of(counts.loc[listed].to_numpy(float), 0)
                ranks[protocol].append(rank)
        return ranks, {}
