"""Rows of tables that hold settings against each other: methods, and values of a swept field.

A row is one setting with its runs, one a seed; a setting that is expected and was not run is a row
without a run, hence a gap. Rows lie in blocks, each with a base where it has one.
"""

from collections.abc import Sequence
from numbers import Real
from pathlib import PurePath

import pandas as pd

from figures import frames, per_run, style
from figures.small_table import GAP

KEYS = ("block", "setting", "method", "base")
FIELD_LABELS = {
    "norm": "Norm of a direction",
    "alpha_scope": "Scope of α",
    "alpha_init": "Initial α, of the own norm",
    "alpha_sign": "Sign of α",
    "alpha_warmup": "Steps of a round for α alone",
    "wire": "Precision on the wire",
    "truncate": "Singular directions sent",
}
# Values that get a row even if nobody ran them.
KNOWN = {
    "norm": ("frobenius", "column", "spectral"),
    "alpha_scope": ("module", "layer", "client"),
    "alpha_sign": ("free", "nonnegative"),
    "wire": ("float32", "bfloat16", "int8"),
}


def of_methods(
    frame: pd.DataFrame,
    dataset: str,
    methods: Sequence[str],
    *,
    block: str = "Method",
    base: str = "",
) -> pd.DataFrame:
    """block, setting, method, base, run, seed: the main runs of each method, in that order.

    ``frame`` is any frame of ``fedecider.runs`` with dataset, method, seed and run; main runs are
    those whose name begins with runs/, the folder that they were read from. Raises ValueError if
    two runs hold the same method and seed.
    """
    frames.require(frame, ("dataset", "method", "seed", "run"), "runs")
    main = frame[(frame["dataset"] == dataset) & frame["run"].astype(str).str.startswith("runs/")]
    main = main[["method", "seed", "run"]].drop_duplicates().sort_values(["seed", "run"])
    rows = []
    for method in methods:
        found = main[main["method"] == method]
        twice = found[found["seed"].duplicated(keep=False)]
        if len(twice):
            raise ValueError(
                f"{dataset}: {method}, seed {twice['seed'].iloc[0]}, is in several runs "
                f"({', '.join(twice['run'])}); keep one of them"
            )
        label = style.method_label(method)
        key = (block, marked(label, method == base), method, method == base)
        rows += entries(key, found)
    return pd.DataFrame(rows, columns=[*KEYS, "run", "seed"], dtype=object)


def of_field(configs: pd.DataFrame, dataset: str, method: str, field: str) -> pd.DataFrame:
    """block, setting, method, base, run, seed: the sweep of one field, the base first.

    ``configs`` is the frame of ``fedecider.runs.configs`` below sweeps/; values are ordered as in
    ``KNOWN``, numbers by size. Where nothing but the base is known, a dash is a row.
    """
    swept = per_run.swept(configs, dataset, method, field)
    swept = swept.assign(value=[value_label(value) for value in swept["value"]])
    bases = list(swept[swept["base"].astype(bool)]["value"])
    known = KNOWN.get(field, ())
    values = dict.fromkeys([*bases, *known, *swept["value"]])
    if set(values) <= set(bases):
        values[GAP] = None
    block, rows = FIELD_LABELS.get(field, field), []
    for value in values:
        found = swept[swept["value"] == value]
        base = value in bases
        key = (block, marked(value, base), method, base)
        rows += entries(key, found)
    return pd.DataFrame(rows, columns=[*KEYS, "run", "seed"], dtype=object)


def entries(key: tuple, found: pd.DataFrame) -> list[tuple]:
    """A row of ``KEYS``, run and seed for each run of a setting; one without a run for a gap."""
    runs = zip(found["run"], found["seed"], strict=True)
    return [(*key, run, seed) for run, seed in runs] or [(*key, None, None)]


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
    metrics: pd.DataFrame, dataset: str, protocol: str, names: Sequence[str], ranker: str
) -> pd.DataFrame:
    """A row a run (index), a column a metric of ``names``: the mean over all domains, 0..1.

    A run that lacks one of the data set's domains has none. Raises ValueError as
    :func:`figures.frames.scores` does.
    """
    # Runs in place of methods: a sweep has many runs of one method and seed.
    rows = frames.scores(metrics.assign(method=metrics["run"]), dataset, protocol, ranker)
    means = frames.summary(rows[rows["metric"].isin(names)])
    means = means[means["domain"] == frames.MEAN]
    wide = means.pivot(index="method", columns="metric", values="mean")
    return wide.reindex(columns=list(names)).rename_axis(index="run", columns=None)


def losses(rounds: pd.DataFrame, dataset: str) -> pd.DataFrame:
    """loss by run (index): the mean over clients of the lowest validation loss, nats a token."""
    found = per_run.best_loss(rounds.assign(method=rounds["run"]), dataset)
    return pd.DataFrame({"loss": list(found["value"])}, index=list(found["method"]))


def attach(rows: pd.DataFrame, values: pd.DataFrame) -> pd.DataFrame:
    """The rows with the columns of ``values``, whose index is the run; a gap without a run."""
    mine = values.reindex(list(rows["run"])).set_axis(rows.index)
    return pd.concat([rows, mine.astype(float)], axis=1)


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
    """A row a setting, in order: ``KEYS``, mean of each column and ``<column>_sd``, seeds, runs.

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
        row["runs"] = frames.joined(group[values.notna().any(axis=1)]["run"])
        out.append(row)
    names = [name for column in columns for name in (column, f"{column}_sd")]
    return pd.DataFrame(out, columns=[*KEYS, *names, "seeds", "runs"])


def ratio(value: float, base: float) -> float:
    """value / base, missing where there is no base or it is 0."""
    return value / base if base > 0 else float("nan")
