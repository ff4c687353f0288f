"""Table 9: time and memory of each method, training and ranking.

Seconds are those of one machine: they compare methods of one table, and nothing else.
"""

from collections.abc import Sequence

import pandas as pd

from figures import select, style, sweeps
from figures.table import NO_RUN, Column, Table

_RUN = ["dataset", "method", "seed", "run"]
_VALUES = ("seconds", "steps", "memory", "ranking_seconds")


def numbers(
    rounds: pd.DataFrame,
    ranking: pd.DataFrame,
    *,
    dataset: str,
    expected: Sequence[str] = (),
    base: str = "local",
) -> pd.DataFrame:
    """One row per method, ratios to ``base``.

    Columns: method, label, family, color, order, seconds, steps, memory (MiB), ranking_seconds,
    each with "_sd", seeds, runs, seconds_ratio, memory_ratio, ranking_seconds_ratio, against (the
    base's label). ``rounds`` and ``ranking`` are the frames of ``fedecider.results`` of these
    names. Training seconds, steps and peak memory: mean and sample standard deviation over all
    clients, rounds and seeds; ranking seconds: over runs. ``expected`` methods that were not run
    are a gap.
    """
    select.require(rounds, (*_RUN, *_VALUES[:3]), "rounds")
    select.require(ranking, (*_RUN, "ranking_seconds"), "ranking")
    training = rounds[rounds["dataset"] == dataset]
    ranked = ranking[ranking["dataset"] == dataset]
    names = [*expected, *training["method"], *ranked["method"]]
    known = select.methods(rounds, ranking, names=names)
    out = []
    for method in known.index:
        parts = [part[part["method"] == method] for part in (training, ranked)]
        row: dict = {"method": method}
        for value in _VALUES:
            values = parts[value == "ranking_seconds"][value].astype(float)
            row[value], row[f"{value}_sd"] = values.mean(), values.std()
        both = pd.concat([part[["seed", "run"]] for part in parts])
        row["seeds"] = both["seed"].nunique() or None
        row["runs"] = select.joined(both["run"])
        out.append(row)
    columns = ["method", *(name for value in _VALUES for name in (value, f"{value}_sd"))]
    rows = pd.DataFrame(out, columns=[*columns, "seeds", "runs"]).astype({"seeds": "Int64"})
    reference = rows.set_index("method")
    for value in ("seconds", "memory", "ranking_seconds"):
        of_base = reference[value].get(base, float("nan"))
        rows[f"{value}_ratio"] = [sweeps.ratio(number, of_base) for number in rows[value]]
    return select.describe(rows, known).assign(against=select.label(rounds, base))


def table(numbers: pd.DataFrame, *, dataset: str, pooled: str = "centralized") -> Table:
    """One row per method: training, peak memory, ranking.

    A note says of the method ``pooled`` that it trains one model for all clients.
    """
    name = f"× {numbers['against'].iloc[0]}" if len(numbers) else "×"
    return Table(
        label=f"cost-{dataset}",
        caption=f"{style.dataset_label(dataset)}: time and memory. Training and peak resident "
        "memory: mean ± sample standard deviation over clients, rounds and seeds, per client and "
        "round; ranking: all test users of a run, over runs.",
        columns=(
            Column("label", "Method", align="l"),
            Column("seeds", "Seeds"),
            Column("seconds", "s", ".2f", 1, "seconds_sd", "Training"),
            Column("seconds_ratio", name, ".2f", group="Training"),
            Column("steps", "steps", ".1f", 1, "steps_sd", "Training"),
            Column("memory", "MiB", ",.0f", 1, "memory_sd", "Peak memory"),
            Column("memory_ratio", name, ".2f", group="Peak memory"),
            Column("ranking_seconds", "s", ",.1f", 1, "ranking_seconds_sd", "Ranking"),
            Column("ranking_seconds_ratio", name, ".2f", group="Ranking"),
        ),
        rows=numbers,
        notes=_notes(numbers, pooled),
    )


def _notes(numbers: pd.DataFrame, pooled: str) -> tuple[str, ...]:
    if not numbers["runs"].any():
        return (NO_RUN,)
    labels = numbers[(numbers["method"] == pooled) & (numbers["runs"] != "")]["label"]
    return tuple(
        f"{label} trains one model on the data of all clients: its numbers are of that."
        for label in labels
    )
