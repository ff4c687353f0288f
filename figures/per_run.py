"""One number a run: what figures hold methods and settings against each other with.

A number of several domains is their unweighted mean; where a run lacks a domain it has none, since
means over different domains cannot be compared.
"""

from collections.abc import Iterator, Sequence
from numbers import Real

import pandas as pd

from figures import frames

_ROUNDS = ("dataset", "method", "seed", "round", "client", "valid_loss", "bytes_up", "bytes_down")
_KEYS = ["method", "seed"]


def quality(
    metrics: pd.DataFrame,
    dataset: str,
    protocol: str,
    metric: str = "ndcg@10",
    domains: Sequence[str] | None = None,
) -> pd.DataFrame:
    """method, seed, value (0..1, mean over ``domains``), runs (folders joined by ";").

    ``domains`` default to all that occur. Raises ValueError as :func:`figures.frames.scores` does,
    hence also where two runs hold the same method and seed.
    """
    rows = frames.scores(metrics, dataset, protocol)
    rows = rows[rows["metric"] == metric]
    domains = sorted(set(rows["domain"])) if domains is None else list(domains)
    rows = rows[rows["domain"].isin(domains)]
    out = rows.groupby(_KEYS, as_index=False).agg(
        value=("value", "mean"), covered=("domain", "nunique"), runs=("run", frames.joined)
    )
    return out[out["covered"] == len(domains)].drop(columns="covered").reset_index(drop=True)


def changes(
    metrics: pd.DataFrame,
    dataset: str,
    protocol: str,
    methods: Sequence[str],
    against: str,
    metric: str,
) -> pd.DataFrame:
    """method, domain, mean, sd, seeds, runs: points (100 x difference), negative where lost.

    Differences are taken seed by seed, so a seed counts where both methods ran with it; sd is the
    sample deviation of the differences. Raises ValueError as :func:`figures.frames.scores` does.
    """
    rows = frames.scores(metrics, dataset, protocol)
    rows = rows[rows["metric"] == metric]
    pairs = rows[rows["method"].isin(list(methods))].merge(
        rows[rows["method"] == against], on=["seed", "domain"], suffixes=("", "_against")
    )
    value = 100 * (pairs["value"] - pairs["value_against"])
    runs = [";".join(both) for both in zip(pairs["run"], pairs["run_against"], strict=True)]
    pairs = pairs.assign(value=value, runs=pd.Series(runs, pairs.index, object))
    return over_seeds(pairs, ["method", "domain"])


def best_loss(rounds: pd.DataFrame, dataset: str) -> pd.DataFrame:
    """method, seed, value (validation loss, nats a token), runs.

    Each client's lowest loss over the rounds, which is that of the model it keeps; then the mean
    over clients. Methods that do not train have no row.
    """
    rows = _of(rounds, dataset).dropna(subset="valid_loss")
    lowest = rows.groupby([*_KEYS, "client", "run"], as_index=False)["valid_loss"].min()
    return lowest.groupby(_KEYS, as_index=False).agg(
        value=("valid_loss", "mean"), runs=("run", frames.joined)
    )


def moved(rounds: pd.DataFrame, dataset: str) -> pd.DataFrame:
    """method, seed, value (bytes that a client sends and receives in all rounds), runs.

    The mean over clients.
    """
    rows = _of(rounds, dataset)
    rows = rows.assign(bytes=rows["bytes_up"] + rows["bytes_down"])
    total = rows.groupby([*_KEYS, "client", "run"], as_index=False)["bytes"].sum()
    return total.groupby(_KEYS, as_index=False).agg(
        value=("bytes", "mean"), runs=("run", frames.joined)
    )


def swept(configs: pd.DataFrame, dataset: str, method: str, field: str) -> pd.DataFrame:
    """run, seed, value, base: the finished runs of one swept field, and those of the base.

    ``configs`` is the frame of ``fedecider.runs.configs`` for the folder of sweeps, where a run
    is called ``<field>-<value>-<method>-seed<k>`` or ``base-<method>-seed<k>``. ``value`` is that
    of the run's configuration (None where it has none). A swept run that repeats a base run (same
    value, same seed) is left out. Ordered by value, numbers by size, None last.
    """
    frames.require(configs, ("dataset", "method", "seed", "run", "finished"), "configs")
    kept = configs[
        (configs["dataset"] == dataset)
        & (configs["method"] == method)
        & configs["finished"].astype(bool)
    ]
    rows = []
    for row in kept.to_dict("records"):
        of = row["run"].rpartition("/")[2].partition("-")[0]
        if of in (field, "base"):
            frames.require(kept, (field,), "configs")
            rows.append((row["run"], row["seed"], _value(row[field]), of == "base"))
    bases = {(value, seed) for _, seed, value, base in rows if base}
    rows = [row for row in rows if row[3] or (row[2], row[1]) not in bases]
    rows.sort(key=lambda row: (*place(row[2]), row[1]))
    return pd.DataFrame(rows, columns=["run", "seed", "value", "base"], dtype=object)


def values_of(
    metrics: pd.DataFrame,
    rounds: pd.DataFrame,
    configs: pd.DataFrame,
    dataset: str,
    method: str,
    field: str,
) -> Iterator[tuple[object, bool, pd.DataFrame, pd.DataFrame]]:
    """value, whether it is the base's, and its runs' rows of the metrics and rounds frames.

    In the order of :func:`swept`; nothing where the base alone was run.
    """
    runs = swept(configs, dataset, method, field)
    if runs["base"].all():
        return
    for value in dict.fromkeys(runs["value"]):
        of = runs[runs["value"].isin([value])]
        mine = metrics["run"].isin(of["run"]) & (metrics["method"] == method)
        yield value, bool(of["base"].any()), metrics[mine], rounds[rounds["run"].isin(of["run"])]


def over_seeds(values: pd.DataFrame, keys: Sequence[str]) -> pd.DataFrame:
    """keys, mean, sd (sample deviation; missing for one seed), seeds, runs."""
    out = values.groupby(list(keys), as_index=False, sort=False, dropna=False).agg(
        mean=("value", "mean"),
        sd=("value", "std"),
        seeds=("seed", "nunique"),
        runs=("runs", frames.joined),
    )
    return out


def about_seeds(seeds: pd.Series) -> str:
    """What error bars mean, for a title; ``seeds`` counts them for each number."""
    if seeds.empty:
        return "no method was run"
    low, high = int(seeds.min()), int(seeds.max())
    if high == 1:
        return "one seed, hence no error bars"
    return f"mean and sd over {high if low == high else f'{low} to {high}'} seeds"


def _of(rounds: pd.DataFrame, dataset: str) -> pd.DataFrame:
    frames.require(rounds, (*_ROUNDS, "run"), "rounds")
    numbers = {name: float for name in ("valid_loss", "bytes_up", "bytes_down")}
    return rounds[rounds["dataset"] == dataset].astype(numbers)  # no types without rows


def _value(value):
    """A setting as it was; a column with gaps has made floats of whole numbers, NaN of None."""
    if pd.isna(value):
        return None
    return int(value) if isinstance(value, float) and value.is_integer() else value


def place(value) -> tuple[int, float, str]:
    """A sort key of values: numbers by size, then other values as text, then None."""
    if isinstance(value, Real):
        return (0, float(value), "")
    return (2, 0.0, "") if value is None else (1, 0.0, str(value))
