"""From the tidy frames of the runs to the numbers that figures and tables show.

The metrics frame has the columns dataset, method, seed, domain, protocol, ranker, metric, value
(0..1), users, run: one row a number. Here it is cut to one data set and one protocol, checked for
contradictions, and summarised over seeds.
"""

from collections.abc import Iterable, Sequence

import pandas as pd

# The display order; methods that are not named here follow alphabetically.
METHODS = (
    "zero-shot",
    "popularity",
    "als",
    "local",
    "centralized",
    "fedavg",
    "fedprox",
    "ffa-lora",
    "flora",
    "fedsa-lora",
    "rolora",
    "lora-sim",
    "fellrec",
    "feddpa",
    "fedecider",
    "fedecider-no-direction",
    "fedecider-no-personalization",
    "fedecider-no-both",
)
# Methods that exchange something and are no variants of FeDecider.
FEDERATED = ("fedavg", "fedprox", "ffa-lora", "flora", "fedsa-lora", "rolora")
FEDERATED += ("lora-sim", "fellrec", "feddpa")
# Every preset is expected to run these: a gap in the main table if not.
EXPECTED = ("zero-shot", "popularity", "local", "fedavg", "fedecider")
# No language models: they rank by themselves and stand in every table of their protocol.
NO_MODEL = ("popularity", "als")
# The ranker that each protocol is read with (method, section 6).
RANKERS = {"catalogue": "grounding", "sampled": "likelihood"}
PROTOCOL_LABELS = {"catalogue": "whole catalogue", "sampled": "1 + 99 sampled candidates"}
METRICS = ("hit@1", "hit@5", "hit@10", "ndcg@5", "ndcg@10", "mrr@10")
MEAN = "mean"

_COLUMNS = (
    "dataset",
    "method",
    "seed",
    "domain",
    "protocol",
    "ranker",
    "metric",
    "value",
    "users",
    "run",
)


def require(frame: pd.DataFrame, columns: Iterable[str], name: str) -> None:
    """ValueError if the frame lacks one of the columns."""
    missing = [column for column in columns if column not in frame.columns]
    if missing:
        raise ValueError(
            f"the {name} frame has no column {', '.join(missing)}; it has {list(frame.columns)}"
        )


def ordered(methods: Iterable[str]) -> list[str]:
    """The methods in display order, each once."""
    rank = {method: i for i, method in enumerate(METHODS)}
    return sorted(set(methods), key=lambda method: (rank.get(method, len(rank)), method))


def scores(
    metrics: pd.DataFrame, dataset: str, protocol: str, ranker: str | None = None
) -> pd.DataFrame:
    """The rows of one data set under one protocol and ranker, popularity's included.

    ``ranker`` defaults to the protocol's own (catalogue: grounding, sampled: likelihood). Raises
    ValueError for an unknown protocol, a lacking column, a value outside 0..1, or two runs that
    both hold the same method, seed, domain and metric: a mean over such rows would not be one
    over seeds.
    """
    require(metrics, _COLUMNS, "metrics")
    if protocol not in RANKERS:
        raise ValueError(f"protocol is {protocol!r}; expected one of {sorted(RANKERS)}")
    ranker = ranker or RANKERS[protocol]
    metrics = metrics.astype({"value": float})  # a frame without rows may have no numeric columns
    kept = metrics[
        (metrics["dataset"] == dataset)
        & (metrics["protocol"] == protocol)
        & ((metrics["ranker"] == ranker) | metrics["method"].isin(NO_MODEL))
        & metrics["value"].notna()
    ]
    outside = kept[(kept["value"] < 0) | (kept["value"] > 1)]
    if len(outside):
        row = outside.iloc[0]
        raise ValueError(f"run {row['run']}: {row['metric']} is {row['value']}; expected 0..1")
    # Popularity has no seed and is the same in every run that carries it.
    popularity = kept["method"] == "popularity"
    repeated = popularity & kept.duplicated(["method", "domain", "metric", "value"])
    kept = kept[~repeated]
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


def summary(rows: pd.DataFrame, domains: Sequence[str] | None = None) -> pd.DataFrame:
    """Mean and spread over seeds of the rows of :func:`scores`.

    Columns: method, domain, metric, mean, sd (sample standard deviation, n - 1; missing for a
    single seed), seeds (how many), users (test users of one seed), runs (the folders the numbers
    came from, joined by ";"). The domain "mean" is the unweighted mean over ``domains`` (default:
    all that occur), taken within each seed; a seed that lacks a domain has none, since means over
    different domains cannot be compared.
    """
    domains = sorted(set(rows["domain"])) if domains is None else list(domains)
    rows = rows[rows["domain"].isin(domains)]
    keys = ["method", "seed", "metric"]
    grouped = rows.groupby(keys, sort=True)
    means = grouped.agg(
        value=("value", "mean"),
        users=("users", "sum"),
        covered=("domain", "nunique"),
        run=("run", joined),
    ).reset_index()
    means = means[means["covered"] == len(domains)].assign(domain=MEAN)
    both = pd.concat([rows, means.drop(columns="covered")], ignore_index=True)
    out = both.groupby(["method", "domain", "metric"], sort=True).agg(
        mean=("value", "mean"),
        sd=("value", "std"),
        seeds=("seed", "nunique"),
        users=("users", "max"),
        runs=("run", joined),
    )
    return out.reset_index()


def best(means: pd.Series, among: Iterable[str]) -> str | None:
    """The method with the largest mean (indexed by method) among some; None where none has one."""
    known = means.reindex(list(among)).dropna()
    return known.idxmax() if len(known) else None


def joined(runs: pd.Series) -> str:
    """Run folders, each once, in order, joined by ";"."""
    return ";".join(sorted({run for entry in runs for run in str(entry).split(";")}))
