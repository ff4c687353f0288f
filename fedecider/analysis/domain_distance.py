"""How far apart two domains are, by items and by users (the left panels of the paper's figure 4).

The paper shows item and user distances; how it measures them is not public. Ours: the energy
distance sqrt(2 E|X - Y| - E|X - X'| - E|Y - Y'|) (Szekely and Rizzo, 2013) between two clouds of
vectors, 0 only for equal distributions. Items are the title embeddings of the untuned backbone
(last token, last layer, unit length), users the mean embedding of their training items.
"""

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from fedecider.adapter import Adapter
from fedecider.domains import Domain, read_domains, some_users
from fedecider.engine.backbone import load
from fedecider.prompts import make_template
from fedecider.rankers.grounding import embed_titles

_SAMPLE = 1000  # vectors per domain; the mean of 10^6 pairs is exact enough for a picture


def energy_distance(first: Tensor, second: Tensor) -> float:
    """Energy distance of two samples (N, d) and (M, d); V-statistic, so never negative."""
    first, second = first.double(), second.double()
    between = torch.cdist(first, second).mean()
    within = torch.cdist(first, first).mean() + torch.cdist(second, second).mean()
    return float((2 * between - within).clamp(min=0).sqrt())


def pairwise(clouds: dict[str, Tensor]) -> pd.DataFrame:
    """Energy distances of all pairs, domains x domains, in sorted order."""
    names = sorted(clouds)
    distances = np.zeros((len(names), len(names)))
    for i, first in enumerate(names):
        for j in range(i):
            distances[i, j] = distances[j, i] = energy_distance(clouds[first], clouds[names[j]])
    return pd.DataFrame(distances, names, names)


def item_distances(data: Path | str, model: str = "smollm2-135m") -> pd.DataFrame:
    """Distances of the catalogues of all prepared domains below a folder, domains x domains.

    `model` embeds the titles: a hub id, a folder or a packaged name. Raises FileNotFoundError if
    there is no prepared domain.
    """
    return pairwise({d.name: item_vectors(d, vectors)[0] for d, vectors in _embedded(data, model)})


def user_distances(data: Path | str, model: str = "smollm2-135m") -> pd.DataFrame:
    """Distances of the user populations of all prepared domains below a folder.

    As `item_distances`.
    """
    return pairwise({d.name: user_vectors(d, vectors) for d, vectors in _embedded(data, model)})


def item_vectors(domain: Domain, vectors: Tensor) -> tuple[Tensor, list[str]]:
    """A fixed sample of the catalogue's vectors, (items, d), and its item_ids."""
    items = some_users(domain.items.index, _SAMPLE)
    rows = domain.items.index.get_indexer(items)
    return vectors[torch.from_numpy(rows)], items


def user_vectors(domain: Domain, vectors: Tensor) -> Tensor:
    """Mean vector of the training items of a fixed sample of users, (users, d)."""
    index = domain.items.index
    users = domain.users["train"]
    return torch.stack(
        [vectors[torch.from_numpy(index.get_indexer(domain.train[user]))].mean(0) for user in users]
    )


def _embedded(data: Path | str, model: str) -> list[tuple[Domain, Tensor]]:
    """Every domain with the unit-length embeddings of its catalogue, (items, d)."""
    backbone = load(model)
    template = make_template("history", backbone.tokenizer, backbone.start)
    domains = []
    with Adapter(backbone, 1, 1, ["q_proj"], 1) as adapter:
        for domain in read_domains(data, train=_SAMPLE, valid=1, test=1):
            titles = [template.title(title) for title in domain.items]
            vectors = embed_titles(adapter, titles, cached=True)
            domains.append((domain, torch.nn.functional.normalize(vectors, dim=-1)))
    return domains
