"""Norms and cosines of the clients' updates, from the frame of ``fedecider.results.geometry``."""

import pandas as pd

from figures import aggregate, select

_COLUMNS = ("dataset", "method", *select.METHOD, "seed", "round", "layer", "client", "other")
_COLUMNS += ("cosine", "norm", "run")


def norms(geometry: pd.DataFrame, dataset: str, method: str = "local") -> pd.DataFrame:
    """domain, layer, mean, sd, seeds, runs: Frobenius norm of the client's update of that layer.

    After the last round of each seed. The layer "all" is the norm of the whole update: the root of
    the sum of squares over layers, within a seed.
    """
    rows = _last(geometry, dataset, method)
    rows = rows[rows["client"] == rows["other"]].rename(columns={"client": "domain"})
    rows = rows.assign(value=rows["norm"], square=rows["norm"] ** 2)
    whole = rows.groupby(["domain", "seed"], as_index=False).agg(
        square=("square", "sum"), runs=("runs", select.joined)
    )
    whole = whole.assign(value=whole["square"] ** 0.5, layer="all")
    both = pd.concat([rows, whole], ignore_index=True) if len(rows) else rows
    return aggregate.over_seeds(both, ["domain", "layer"])


def cosines(geometry: pd.DataFrame, dataset: str, method: str = "local") -> pd.DataFrame:
    """domain, other, layer, mean, sd, seeds, runs: cosine between two clients' updates.

    After the last round of each seed, both orders of a pair. The layer "mean" is the mean over
    layers, taken within a seed. Layers in which one update is zero have no cosine.
    """
    rows = _last(geometry, dataset, method).rename(columns={"client": "domain"})
    rows = rows[(rows["domain"] != rows["other"]) & rows["cosine"].notna()]
    rows = rows.assign(value=rows["cosine"])
    mean = rows.groupby(["domain", "other", "seed"], as_index=False).agg(
        value=("value", "mean"), runs=("runs", select.joined)
    )
    both = pd.concat([rows, mean.assign(layer="mean")], ignore_index=True) if len(rows) else rows
    return aggregate.over_seeds(both, ["domain", "other", "layer"])


def separation(cosines: pd.DataFrame) -> tuple[float, float]:
    """Of the rows of :func:`cosines`: spread within a pair, and between pairs.

    The first is the sample deviation over the layers of a pair, averaged over pairs; the second
    that of the pairs' means. NaN with fewer than two layers, or two pairs.
    """
    once = cosines[cosines["domain"] < cosines["other"]]
    layers, means = once[once["layer"] != "mean"], once[once["layer"] == "mean"]
    within = layers.groupby(["domain", "other"])["mean"].std().mean()
    return float(within), float(means["mean"].std())


def _last(geometry: pd.DataFrame, dataset: str, method: str) -> pd.DataFrame:
    """Rows of the last round of each seed, and ``runs``."""
    select.require(geometry, _COLUMNS, "geometry")
    rows = geometry[(geometry["dataset"] == dataset) & (geometry["method"] == method)]
    rows = aggregate.last_round(rows).rename(columns={"run": "runs"})
    return rows.astype({"cosine": float, "norm": float})
