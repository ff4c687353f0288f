"""als: matrix factorisation of a domain's interactions. No language model, no federation.

Implicit alternating least squares (Hu, Koren and Volinsky, 2008) as the library implicit has it, on
the training interactions of *all* users of the domain, as popularity counts them: more than the
sampled users that a language model is trained on, which is to the advantage of this baseline. So is
that items of the user's own history are ranked last in the whole catalogue, as recommenders of
this kind do. The number of factors and the confidence of an interaction are chosen on validation.
"""

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field
from scipy.sparse import csr_matrix
from threadpoolctl import threadpool_limits

from fedecider.domains import Domain, interactions
from fedecider.methods.base import Method, NoSettings
from fedecider.metrics import per_user, rank_of

if TYPE_CHECKING:
    from implicit.cpu.als import AlternatingLeastSquares

_FIXED = {"regularization": 0.01, "iterations": 15}


class Als(Method):
    """Fitted once per domain, without rounds."""

    class Settings(NoSettings):
        """Of als."""

        factors: list[int] = Field(
            [16, 32, 64], min_length=1, description="numbers of factors that validation tries"
        )
        confidences: list[float] = Field(
            [1.0, 10.0, 40.0],
            min_length=1,
            description="weights of an interaction (a missing one weighs 1) that it tries",
        )

    name, label, family = "als", "ALS", "no language model"
    color, order = "#6699CC", 1
    trains = False
    reads_all_users = True
    grid = []

    def rank(
        self, domain: Domain, protocols: Sequence[str]
    ) -> tuple[dict[str, list[int]], dict[str, Any]]:
        """Ranks of the test users by protocol, and the settings that validation chose.

        Those with the best NDCG@10 on the validation users' stored lists; ties: the smallest.
        """
        # The library is slow to load.
        from implicit.cpu.als import AlternatingLeastSquares

        table = _interaction_matrix(domain)
        best = None
        grid = itertools.product(sorted(self.settings.factors), sorted(self.settings.confidences))
        for size, confidence in grid:
            model = AlternatingLeastSquares(
                factors=size,
                alpha=confidence,
                random_state=self.config.seed,
                num_threads=1,
                use_native=True,
                **_FIXED,
            )
            with threadpool_limits(1, "blas"):  # two layers of threads would wait for each other
                model.fit(table, show_progress=False)
            valid = _ranks(model, domain, "valid")["sampled"]
            quality = per_user(np.array(valid), "ndcg@10").mean()
            if best is None or quality > best[0]:
                best = (quality, {"factors": size, "confidence": confidence}, model)
        assert best is not None  # the grid has at least one entry
        ranks = _ranks(best[2], domain, "test")
        return {protocol: ranks[protocol] for protocol in protocols}, best[1]


def _interaction_matrix(domain: Domain) -> csr_matrix:
    """Users x items of all training interactions of the domain, entries 1."""
    items, known = domain.items.index, interactions(domain.folder)
    rows = known["user_id"].astype("category").cat.codes
    ones = np.ones(len(known), dtype=np.float32)
    shape = (int(rows.max()) + 1, len(items))
    return csr_matrix((ones, (rows, items.get_indexer(known["item_id"]))), shape=shape)


def _ranks(model: "AlternatingLeastSquares", domain: Domain, split: str) -> dict[str, list[int]]:
    """Ranks of a split's users under both protocols; each user is folded in by its history."""
    items = domain.items.index
    ranks: dict[str, list[int]] = {"sampled": [], "catalogue": []}
    for user in domain.users[split]:
        history = np.unique(items.get_indexer(domain.history(user, split)))
        row = csr_matrix(
            (np.ones(len(history), dtype=np.float32), (np.zeros_like(history), history)),
            shape=(1, len(items)),
        )
        factor = model.recalculate_user(0, row)
        scores = (model.item_factors @ np.ravel(factor)).astype(float)
        target = domain.target(user, split)
        listed = items.get_indexer([target, *domain.negatives[split, user]])
        ranks["sampled"].append(rank_of(scores[listed], 0))
        row_of_target = items.get_loc(target)
        masked = scores.copy()
        masked[np.setdiff1d(history, [row_of_target])] = -np.inf
        ranks["catalogue"].append(rank_of(masked, row_of_target))
    return ranks
