"""Rows of tables that compare settings: methods, and values of a swept setting.

A row is one setting with its runs, one per seed; an expected setting that was not run is a row
without a run, hence a gap. Rows lie in blocks, each with a base where it has one.
"""

from collections.abc import Iterator, Sequence
from numbers import Real
from pathlib import PurePath

import pandas as pd

from figures import aggregate, select
from figures.table import GAP

KEYS = ("block", "setting", "method", "base")
FIELD_LABELS = {
    "norm": "Norm of a direction",
    "alpha_scope": "Scope of α",
    "alpha_init": "Initial α, of the own norm",
    "alpha_sign": "Sign of α",
    "alpha_warmup": "Steps per round for α alone",
    "payload_dtype": "Precision of the payload",
    "truncate": "Singular directions sent",
}
# Values that get a row even if nobody ran them.
KNOWN = {
    "norm": ("frobenius", "column", "spectral"),
    "alpha_scope": ("module", "layer", "client"),
    "alpha_sign": ("free", "nonnegative"),
    "payload_dtype": ("float32", "bfloat16", "int8"),
}


def of_sweeps(runs: pd.Series) -> pd.Series:
    """Which names of runs are those of a folder called sweeps; all others are main runs."""
    return runs.astype(str).str.startswith("sweeps/")


def swept(configs: pd.DataFrame, dataset: str, method: str, field: str) -> pd.DataFrame:
    """run, seed, value, base: the finished runs of one swept setting, and those of the base.

    ``configs`` is the frame of ``fedecider.results.configs`` for the folder of sweeps, where a run
    is called ``<field>-<value>-<method>-seed<k>`` or ``base-<method>-seed<k>``. ``value`` is that
    of the run's configuration (None where it has none). A swept run that repeats a base run (same
    value, same seed) is left out. Ordered by value, numbers by size, None last.
    """
    select.require(configs, ("dataset", "method", "seed", "run", "finished"), "configs")
    kept = configs[
        (configs["dataset"] == dataset)
        & (configs["method"] == method)
        & configs["finished"].astype(bool)
        & of_sweeps(configs["run"])
    ]
    rows = []
    for row in kept.to_dict("records"):
        of = row["run"].rpartition("/")[2].partition("-")[0]
        if of in (field, "base"):
            select.require(kept, (field,), "configs")
            rows.append((row["run"], row["seed"], _value(row[field]), of == "base"))
    bases = {(value, seed) for _, seed, value, base in rows if base}
    rows = [row for row in rows if row[3] or (row[2], row[1]) not in bases]
    rows.sort(key=lambda row: (*sort_key(row[2]), row[1]))
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
        ranked = metrics["run"].isin(of["run"]) & (metrics["method"] == method)
        yield value, bool(of["base"].any()), metrics[ranked], rounds[rounds["run"].isin(of["run"])]


def of_methods(
    frame: pd.DataFrame,
    dataset: str,
    known: pd.DataFrame,
    *,
    block: str = "Method",
    base: str = "",
) -> pd.DataFrame:
    """block, setting, method, base, run, seed: main runs of the methods of ``known``, in order.

    ``known`` is a frame of :func:`figures.select.methods`, ``frame`` any results frame with
    dataset, method, seed and run; main runs are those that are not :func:`of_sweeps`. Raises
    ValueError if two runs hold the same method and seed.
    """
    select.require(frame, ("dataset", "method", "seed", "run"), "runs")
    main = frame[(frame["dataset"] == dataset) & ~of_sweeps(frame["run"])]
    main = main[["method", "seed", "run"]].drop_duplicates().sort_values(["seed", "run"])
    rows = []
    for method, label in known["label"].items():
        runs = main[main["method"] == method]
        twice = runs[runs["seed"].duplicated(keep=False)]
        if len(twice):
            raise ValueError(
                f"{dataset}: {method}, seed {twice['seed'].iloc[0]}, is in several runs "
                f"({', '.join(twice['run'])}); keep one of them"
            )
        rows += entries((block, marked(label, method == base), method, method == base), runs)
    return pd.DataFrame(rows, columns=[*KEYS, "run", "seed"], dtype=object)


def of_field(configs: pd.DataFrame, dataset: str, method: str, field: str) -> pd.DataFrame:
    """block, setting, method, base, run, seed: the sweep of one setting, the base first.

    Values are ordered as in ``KNOWN``, numbers by size. Where nothing but the base is known, a dash
    is a row.
    """
    runs = swept(configs, dataset, method, field)
    runs = runs.assign(value=[value_label(value) for value in runs["value"]])
    bases = list(runs[runs["base"].astype(bool)]["value"])
    values = dict.fromkeys([*bases, *KNOWN.get(field, ()), *runs["value"]])
    if set(values) <= set(bases):
        values[GAP] = None
    block, rows = FIELD_LABELS.get(field, field.replace("_", " ")), []
    for value in values:
        base = value in bases
        rows += entries((block, marked(value, base), method, base), runs[runs["value"] == value])
    return pd.DataFrame(rows, columns=[*KEYS, "run", "seed"], dtype=object)


def entries(key: tuple, runs: pd.DataFrame) -> list[tuple]:
    """A row of ``KEYS``, run and seed per run of a setting; one without a run for a gap."""
    pairs = zip(runs["run"], runs["seed"], strict=True)
    return [(*key, run, seed) for run, seed in pairs] or [(*key, None, None)]


def marked(label: str, base: bool) -> str:
    """The label, and whether it is that of the base."""
    return f"{label} (base)" if base else label


def value_label(value) -> str:
    """A setting's value as printed: none is "all", numbers short, a model's folder by its name."""
    if value is None:
        return "all"
    if isinstance(value, Real):
        return f"{value:g}"
    return PurePath(value).name if PurePath(value).is_absolute() else str(value)


def scores(
    metrics: pd.DataFrame,
    dataset: str,
    protocol: str,
    names: Sequence[str],
    ranker: str | None = None,
) -> pd.DataFrame:
    """One row per run (index), one column per metric of ``names``: the mean over all domains, 0..1.

    A run that lacks one of the data set's domains has none. Raises ValueError as
    :func:`figures.select.scores` does.
    """
    # Runs in place of methods: a sweep has many runs of one method and seed.
    rows = select.scores(metrics.assign(method=metrics["run"]), dataset, protocol, ranker)
    means = aggregate.by_domain(rows[rows["metric"].isin(names)])
    means = means[means["domain"] == select.MEAN]
    wide = means.pivot(index="method", columns="metric", values="mean")
    return wide.reindex(columns=list(names)).rename_axis(index="run", columns=None)


def losses(rounds: pd.DataFrame, dataset: str) -> pd.DataFrame:
    """loss by run (index): the mean over clients of the lowest validation loss, nats per token."""
    lowest = aggregate.best_loss(rounds.assign(method=rounds["run"]), dataset)
    return pd.DataFrame({"loss": list(lowest["value"])}, index=list(lowest["method"]))


def attach(rows: pd.DataFrame, values: pd.DataFrame) -> pd.DataFrame:
    """The rows with the columns of ``values``, whose index is the run; a gap without a run."""
    of_rows = values.reindex(list(rows["run"])).set_axis(rows.index)
    return pd.concat([rows, of_rows.astype(float)], axis=1)


def against_base(rows: pd.DataFrame, column: str) -> pd.Series:
    """Each run's value less that of its block's base with the same seed; none for the base."""
    records, nan = rows.to_dict("records"), float("nan")
    bases = {(row["block"], row["seed"]): row[column] for row in records if row["base"]}
    out = [
        nan if row["base"] else row[column] - bases.get((row["block"], row["seed"]), nan)
        for row in records
    ]
    return pd.Series(out, index=rows.index, dtype=float)


def over_seeds(rows: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """One row per setting, in order: ``KEYS``, mean per column, ``<column>_sd``, seeds, runs.

    sd is the sample standard deviation, missing for one seed; seeds the number of seeds, as a
    range where the columns differ in it.
    """
    out = []
    for key, group in rows.groupby(list(KEYS), sort=False):
        row: dict = dict(zip(KEYS, key, strict=True))
        values = group[list(columns)].astype(float)
        for column in columns:
            row[column], row[f"{column}_sd"] = values[column].mean(), values[column].std()
        counts = [int(count) for count in values.count() if count]
        ends = sorted({min(counts), max(counts)}) if counts else []
        row["seeds"] = "–".join(map(str, ends)) or None
        row["runs"] = select.joined(group[values.notna().any(axis=1)]["run"])
        out.append(row)
    names = [name for column in columns for name in (column, f"{column}_sd")]
    return pd.DataFrame(out, columns=[*KEYS, *names, "seeds", "runs"])


def ratio(value: float, base: float) -> float:
    """value / base, missing where there is no base or it is 0."""
    return value / base if base > 0 else float("nan")


def sort_key(value) -> tuple[int, float, str]:
    """Order of values: numbers by size, then other values as text, then None."""
    if isinstance(value, Real):
        return (0, float(value), "")
    return (2, 0.0, "") if value is None else (1, 0.0, str(value))


def _value(value):
    """A setting as it was; a column with gaps has made floats of whole numbers, NaN of None."""
    if pd.isna(value):
        return None
    return int(value) if isinstance(value, float) and value.is_integer() else value
