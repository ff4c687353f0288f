"""Table 9: time and memory of each method, training and ranking.

Seconds are those of one machine: they compare methods of one table, and nothing else.
"""

from collections.abc import Sequence

import pandas as pd

from figures import frames, setting_rows, style
from figures.small_table import NO_RUN, Column, Table

_RUN = ["dataset", "method", "seed", "run"]
_VALUES = ("seconds", "steps", "memory", "ranking_seconds")


def cost(
    rounds: pd.DataFrame,
    ranking: pd.DataFrame,
    *,
    dataset: str,
    methods: Sequence[str] = ("local", "fedavg", "fedecider"),
    base: str = "local",
) -> Table:
    """The table of one data set: a row a method, ratios to ``base``.

    ``rounds`` and ``ranking`` are the frames of ``fedecider.runs`` of these names. Training
    seconds, steps and peak memory: mean and sample standard deviation over all clients, rounds and
    seeds; ranking seconds: over runs. Methods that are expected and were not run are a gap.
    """
    frames.require(rounds, (*_RUN, *_VALUES[:3]), "rounds")
    frames.require(ranking, (*_RUN, "ranking_seconds"), "ranking")
    parts = {
        "training": rounds[rounds["dataset"] == dataset],
        "ranking": ranking[ranking["dataset"] == dataset],
    }
    found = [method for part in parts.values() for method in part["method"]]
    out = []
    for method in frames.ordered([*methods, *found]):
        mine = {name: part[part["method"] == method] for name, part in parts.items()}
        row: dict = {"method": method}
        for value in _VALUES:
            numbers = mine["ranking" if value == "ranking_seconds" else "training"][value]
            numbers = numbers.astype(float)
            row[value], row[f"{value}_sd"] = numbers.mean(), numbers.std()
        both = pd.concat([part[["seed", "run"]] for part in mine.values()])
        row["seeds"] = both["seed"].nunique() or None
        row["runs"] = frames.joined(both["run"])
        out.append(row)
    rows = pd.DataFrame(out).astype({"seeds": "Int64"})
    reference = rows.set_index("method")
    for value in ("seconds", "memory", "ranking_seconds"):
        one = reference[value].get(base, float("nan"))
        rows[f"{value}_ratio"] = [setting_rows.ratio(number, one) for number in rows[value]]
    name = f"× {style.method_label(base)}"
    return Table(
        label=f"cost-{dataset}",
        caption=f"{style.dataset_label(dataset)}: time and memory. Training and peak resident "
        "memory: mean ± sample standard deviation over clients, rounds and seeds, a client and "
        "round each; ranking: all test users of a run, over runs.",
        columns=(
            Column("method", "Method", align="l", words=style.method_label),
            Column("seeds", "Seeds"),
            Column("seconds", "s", ".2f", 1, "seconds_sd", "Training"),
            Column("seconds_ratio", name, ".2f", group="Training"),
            Column("steps", "steps", ".1f", 1, "steps_sd", "Training"),
            Column("memory", "MiB", ",.0f", 1, "memory_sd", "Peak memory"),
            Column("memory_ratio", name, ".2f", group="Peak memory"),
            Column("ranking_seconds", "s", ",.1f", 1, "ranking_seconds_sd", "Ranking"),
            Column("ranking_seconds_ratio", name, ".2f", group="Ranking"),
        ),
        rows=rows,
        notes=_notes(rows),
    )


def _notes(rows: pd.DataFrame) -> tuple[str, ...]:
    if not rows["runs"].any():
        return (NO_RUN,)
    if rows.loc[rows["method"] == "centralized", "runs"].any():
        label = style.method_label("centralized")
        return (f"{label} trains one model on the data of all clients: its numbers are of that.",)
    return ()
