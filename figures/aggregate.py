"""Per-run summary statistics for comparing methods and settings, and their spread over seeds.

A number of several domains is their unweighted mean; a run that lacks a domain has none, since
means over different domains cannot be compared.
"""

from collections.abc import Sequence

import pandas as pd

from figures import select

LOSS = "validation loss"
_ROUNDS = ("dataset", "method", "seed", "round", "client", "valid_loss", "bytes_up", "bytes_down")
_KEYS = ["method", "seed"]


def by_domain(rows: pd.DataFrame, domains: Sequence[str] | None = None) -> pd.DataFrame:
    """Mean and spread over seeds of the rows of :func:`figures.select.scores`.

    Columns: method, domain, metric, mean, sd (sample standard deviation, n - 1; missing for a
    single seed), seeds (how many), users (test users of one seed), runs (folders joined by ";").
    The domain "mean" is the unweighted mean over ``domains`` (default: all that occur), taken
    within each seed; a seed that lacks a domain has none.
    """
    domains = sorted(set(rows["domain"])) if domains is None else list(domains)
    rows = rows[rows["domain"].isin(domains)]
    keys = ["method", "seed", "metric"]
    grouped = rows.groupby(keys, sort=True)
    means = grouped.agg(
        value=("value", "mean"),
        users=("users", "sum"),
        covered=("domain", "nunique"),
        run=("run", select.joined),
    ).reset_index()
    means = means[means["covered"] == len(domains)].assign(domain=select.MEAN)
    both = pd.concat([rows, means.drop(columns="covered")], ignore_index=True)
    out = both.groupby(["method", "domain", "metric"], sort=True).agg(
        mean=("value", "mean"),
        sd=("value", "std"),
        seeds=("seed", "nunique"),
        users=("users", "max"),
        runs=("run", select.joined),
    )
    return out.reset_index()


def quality(
    metrics: pd.DataFrame,
    dataset: str,
    protocol: str,
    metric: str = "ndcg@10",
    domains: Sequence[str] | None = None,
    ranker: str | None = None,
) -> pd.DataFrame:
    """method, seed, value (0..1, mean over ``domains``), runs (folders joined by ";").

    ``domains`` default to all that occur. Raises ValueError as :func:`figures.select.scores` does,
    hence also where two runs hold the same method and seed.
    """
    rows = select.scores(metrics, dataset, protocol, ranker)
    rows = rows[rows["metric"] == metric]
    domains = sorted(set(rows["domain"])) if domains is None else list(domains)
    rows = rows[rows["domain"].isin(domains)]
    out = rows.groupby(_KEYS, as_index=False).agg(
        value=("value", "mean"), covered=("domain", "nunique"), runs=("run", select.joined)
    )
    return out[out["covered"] == len(domains)].drop(columns="covered").reset_index(drop=True)


def changes(
    metrics: pd.DataFrame,
    dataset: str,
    protocol: str,
    methods: Sequence[str],
    baseline: str,
    metric: str,
) -> pd.DataFrame:
    """method, domain, mean, sd, seeds, runs: points (100 x difference), negative where lost.

    Differences to ``baseline`` are taken seed by seed, so a seed counts where both methods ran with
    it; sd is the sample deviation of the differences. Raises ValueError as
    :func:`figures.select.scores` does.
    """
    rows = select.scores(metrics, dataset, protocol)
    rows = rows[rows["metric"] == metric]
    pairs = rows[rows["method"].isin(list(methods))].merge(
        rows[rows["method"] == baseline], on=["seed", "domain"], suffixes=("", "_baseline")
    )
    value = 100 * (pairs["value"] - pairs["value_baseline"])
    runs = [";".join(both) for both in zip(pairs["run"], pairs["run_baseline"], strict=True)]
    pairs = pairs.assign(value=value, runs=pd.Series(runs, pairs.index, object))
    return over_seeds(pairs, ["method", "domain"])


def best_loss(rounds: pd.DataFrame, dataset: str) -> pd.DataFrame:
    """method, seed, value (validation loss, nats per token), runs.

    Each client's lowest loss over the rounds, which is that of the model it keeps; then the mean
    over clients. Methods that do not train have no row.
    """
    rows = _of(rounds, dataset).dropna(subset="valid_loss")
    lowest = rows.groupby([*_KEYS, "client", "run"], as_index=False)["valid_loss"].min()
    return lowest.groupby(_KEYS, as_index=False).agg(
        value=("valid_loss", "mean"), runs=("run", select.joined)
    )


def moved(rounds: pd.DataFrame, dataset: str) -> pd.DataFrame:
    """method, seed, value (bytes that a client sends and receives in all rounds), runs.

    The mean over clients.
    """
    rows = _of(rounds, dataset)
    rows = rows.assign(bytes=rows["bytes_up"] + rows["bytes_down"])
    total = rows.groupby([*_KEYS, "client", "run"], as_index=False)["bytes"].sum()
    return total.groupby(_KEYS, as_index=False).agg(
        value=("bytes", "mean"), runs=("run", select.joined)
    )


def last_round(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of the last round of each seed."""
    last = frame.groupby("seed")["round"].transform("max")
    return frame[frame["round"] == last].reset_index(drop=True)


def over_seeds(values: pd.DataFrame, keys: Sequence[str]) -> pd.DataFrame:
    """keys, mean, sd (sample deviation; missing for one seed), seeds, runs."""
    return values.groupby(list(keys), as_index=False, sort=False, dropna=False).agg(
        mean=("value", "mean"),
        sd=("value", "std"),
        seeds=("seed", "nunique"),
        runs=("runs", select.joined),
    )


def about_seeds(seeds: pd.Series) -> str:
    """What error bars mean, for a title; ``seeds`` counts them for each number, 0 for a gap."""
    seeds = seeds[seeds > 0]
    if seeds.empty:
        return "no method was run"
    low, high = int(seeds.min()), int(seeds.max())
    if high == 1:
        return "one seed, hence no error bars"
    return f"mean and sd over {high if low == high else f'{low} to {high}'} seeds"


def _of(rounds: pd.DataFrame, dataset: str) -> pd.DataFrame:
    select.require(rounds, (*_ROUNDS, "run"), "rounds")
    numbers = {name: float for name in ("valid_loss", "bytes_up", "bytes_down")}
    return rounds[rounds["dataset"] == dataset].astype(numbers)  # no types without rows
