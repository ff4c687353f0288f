"""Choosing rows of the results frames: methods in order, scores of one ranker, the best others.

Every frame of ``fedecider.results`` describes its methods in the columns label, family, color and
order. Nothing here names a method: whoever is in a frame is in the figures.
"""

from collections.abc import Iterable, Sequence

import pandas as pd

from fedecider.metrics import METRICS as METRICS
from fedecider.results import NO_MODEL as NO_MODEL

METHOD = ["label", "family", "color", "order"]
FEDERATED, ABLATION = "federated", "ablation"  # families
MEAN = "mean"  # the domain or client of a mean over all
PROTOCOL_LABELS = {"catalogue": "whole catalogue", "sampled": "1 + 99 sampled candidates"}

_SCORES = ("dataset", "method", *METHOD, "seed", "domain", "protocol", "ranker", "metric", "value")
_SCORES += ("users", "run")


def require(frame: pd.DataFrame, columns: Iterable[str], name: str) -> None:
    """ValueError if the frame lacks one of the columns."""
    missing = [column for column in columns if column not in frame.columns]
    if missing:
        raise ValueError(
            f"the {name} frame has no column {', '.join(missing)}; it has {list(frame.columns)}"
        )


def methods(*frames: pd.DataFrame, names: Iterable[str] | None = None) -> pd.DataFrame:
    """label, family, color, order by method (index), each once, in display order.

    ``names`` restricts them; a method that no frame describes is called by its name, has no family
    and comes last. Raises ValueError for a frame without these columns.
    """
    for frame in frames:
        require(frame, ["method", *METHOD], "results")
    parts = [frame[["method", *METHOD]] for frame in frames if len(frame)]
    known = pd.concat(parts) if parts else pd.DataFrame(columns=["method", *METHOD])
    known = known.drop_duplicates("method").set_index("method")
    if names is not None:
        names = list(dict.fromkeys(names))
        last = known["order"].max() + 1 if len(known) else 0
        unknown = [name for name in names if name not in known.index]
        rows = [(name, "", "#8a8a8a", last) for name in unknown]
        described = pd.DataFrame(rows, index=pd.Index(unknown, dtype=object), columns=METHOD)
        known = pd.concat([part for part in (known, described) if len(part)] or [known])
        known = known.loc[names].rename_axis("method")
    order = sorted(known.index, key=lambda method: (known.at[method, "order"], method))
    return known.loc[order].astype(object)


def describe(rows: pd.DataFrame, known: pd.DataFrame) -> pd.DataFrame:
    """The rows with METHOD after their column ``method``, from the frame of :func:`methods`."""
    out = rows.drop(columns=METHOD, errors="ignore")
    at = out.columns.get_loc("method") + 1
    for i, column in enumerate(METHOD):
        out.insert(at + i, column, list(out["method"].map(known[column])))
    return out


def label(frame: pd.DataFrame, method: str) -> str:
    """The method's label in the frame; a method that is not there keeps its name."""
    return methods(frame, names=[method])["label"].iloc[0]


def protocol_label(protocol: str) -> str:
    """What a protocol ranks among; an unknown one keeps its name."""
    return PROTOCOL_LABELS.get(protocol, protocol)


def rankers(metrics: pd.DataFrame, dataset: str) -> list[tuple[str, str]]:
    """(protocol, ranker) of every language model's ranking of the data set, in order.

    A protocol without a language model has none: what ranks by itself stands in every table.
    """
    require(metrics, _SCORES, "metrics")
    rows = metrics[(metrics["dataset"] == dataset) & (metrics["family"] != NO_MODEL)]
    return sorted(set(zip(rows["protocol"], rows["ranker"], strict=True)))


def ranker_of(metrics: pd.DataFrame, dataset: str, protocol: str) -> str:
    """The ranker with which most methods ranked, the first by name among equals; "" for none."""
    require(metrics, _SCORES, "metrics")
    rows = metrics[(metrics["dataset"] == dataset) & (metrics["protocol"] == protocol)]
    counts = rows[rows["family"] != NO_MODEL].groupby("ranker")["method"].nunique()
    return str(counts.idxmax()) if len(counts) else ""


def scores(
    metrics: pd.DataFrame, dataset: str, protocol: str, ranker: str | None = None
) -> pd.DataFrame:
    """Rows of one data set under one protocol and ranker, and of what ranks by itself.

    ``ranker`` defaults to :func:`ranker_of`. Raises ValueError for an unknown protocol, a lacking
    column, a value outside 0..1, or two runs that both hold the same method, seed, domain and
    metric: a mean over such rows would not be one over seeds.
    """
    require(metrics, _SCORES, "metrics")
    known = sorted({*PROTOCOL_LABELS, *metrics["protocol"]})
    if protocol not in known:
        raise ValueError(f"protocol is {protocol!r}; expected one of {known}")
    ranker = ranker_of(metrics, dataset, protocol) if ranker is None else ranker
    metrics = metrics.astype({"value": float})  # a frame without rows may have no numeric columns
    kept = metrics[
        (metrics["dataset"] == dataset)
        & (metrics["protocol"] == protocol)
        & ((metrics["ranker"] == ranker) | (metrics["family"] == NO_MODEL))
        & metrics["value"].notna()
    ]
    outside = kept[(kept["value"] < 0) | (kept["value"] > 1)]
    if len(outside):
        row = outside.iloc[0]
        raise ValueError(f"run {row['run']}: {row['metric']} is {row['value']}; expected 0..1")
    same = ["method", "seed", "domain", "metric"]
    twice = kept[kept.duplicated(same, keep=False)].sort_values([*same, "run"])
    if len(twice):
        row = twice.iloc[0]
        others = twice[(twice[same] == row[same]).all(axis=1)]["run"]
        raise ValueError(
            f"{dataset}: {row['metric']} of {row['method']}, seed {row['seed']}, domain "
            f"{row['domain']} is in several runs ({', '.join(map(str, others))}); keep one of them"
        )
    return kept.reset_index(drop=True)


def best(means: pd.Series, among: Iterable[str]) -> str | None:
    """The method with the largest mean (indexed by method) of ``among``; None without one."""
    known = means.reindex(list(among)).dropna()
    return known.idxmax() if len(known) else None


def federated(known: pd.DataFrame, others: Sequence[str]) -> list[str]:
    """Those of ``others`` whose family in ``known`` (see :func:`methods`) is "federated"."""
    return [method for method in known.index[known["family"] == FEDERATED] if method in set(others)]


def joined(runs: Iterable[str]) -> str:
    """Run folders, each once, in order, joined by ";"."""
    return ";".join(sorted({run for entry in runs for run in str(entry).split(";") if run}))
