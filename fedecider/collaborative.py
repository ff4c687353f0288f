"""als: matrix factorisation of a domain's interactions, a line that is no language model.

Implicit alternating least squares (Hu, Koren and Volinsky, 2008) as the library implicit has it, on
the training interactions of *all* users of the domain, as popularity counts them: more than the
sampled users that a language model is trained on, which is to the advantage of this line. So is
that items of the user's own history are ranked last in the whole catalogue, as recommenders of
this kind do. The number of factors and the confidence of an interaction are chosen on validation.
"""

import itertools
from collections.abc import Sequence

import numpy as np
import pandas as pd
from implicit.cpu.als import AlternatingLeastSquares
from scipy.sparse import csr_matrix
from threadpoolctl import threadpool_limits

from fedecider.config import RunConfig
from fedecider.domains import Domain, interactions
from fedecider.metrics import per_user, rank_of

_SETTINGS = {"regularization": 0.01, "iterations": 15}


def als_ranks(
    domain: Domain, factors: Sequence[int], confidences: Sequence[float], seed: int = 0
) -> tuple[dict[str, list[int]], dict]:
    """Ranks of the test users by protocol, and the settings that validation chose.

    An interaction weighs `confidence`, a missing one 1. Returns {"sampled": [...], "catalogue":
    [...]} in the order of `domain.users["test"]`, and the settings with the best NDCG@10 on the
    validation users' stored lists; ties: the smallest.
    """
    items = domain.items.index
    known = interactions(domain.folder)
    rows = known["user_id"].astype("category").cat.codes
    ones = np.ones(len(known), dtype=np.float32)
    shape = (int(rows.max()) + 1, len(items))
    table = csr_matrix((ones, (rows, items.get_indexer(known["item_id"]))), shape=shape)
    best = None
    for size, confidence in itertools.product(sorted(factors), sorted(confidences)):
        model = AlternatingLeastSquares(
            factors=size,
            alpha=confidence,
            random_state=seed,
            num_threads=1,
            use_native=True,
            **_SETTINGS,
        )
        with threadpool_limits(1, "blas"):  # two layers of threads would wait for each other
            model.fit(table, show_progress=False)
        ranks = _ranks(model, domain, "valid")["sampled"]
        quality = per_user(np.array(ranks), "ndcg@10").mean()
        if best is None or quality > best[0]:
            best = (quality, {"als_factors": size, "als_confidence": confidence}, model)
    return _ranks(best[2], domain, "test"), best[1]


def _ranks(model, domain: Domain, split: str) -> dict[str, list[int]]:
    items = domain.items.index
    found: dict[str, list[int]] = {"sampled": [], "catalogue": []}
    for user in domain.users[split]:
        seen = np.unique(items.get_indexer(domain.history(user, split)))
        row = csr_matrix(
            (np.ones(len(seen), dtype=np.float32), (np.zeros_like(seen), seen)),
            shape=(1, len(items)),
        )
        factor = model.recalculate_user(0, row)
        scores = (model.item_factors @ np.ravel(factor)).astype(float)
        target = domain.target(user, split)
        listed = items.get_indexer([target, *domain.negatives[split, user]])
        found["sampled"].append(rank_of(scores[listed], 0))
        place = items.get_loc(target)
        others = scores.copy()
        others[np.setdiff1d(seen, [place])] = -np.inf
        found["catalogue"].append(rank_of(others, place))
    return found


def frame(domain: Domain, config: RunConfig, protocols: Sequence[str]):
    """The ranks as rows of an evaluation (see `evaluation.evaluate`), and the choice."""
    ranks, chosen = als_ranks(domain, config.als_factors, config.als_confidences, config.seed)
    rows = [
        (domain.name, "als", protocol, "als", user, rank)
        for protocol in protocols
        for user, rank in zip(domain.users["test"], ranks[protocol], strict=True)
    ]
    columns = ["domain", "method", "protocol", "ranker", "user_id", "rank"]
    return pd.DataFrame(rows, columns=columns), chosen
