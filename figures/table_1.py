"""Table 1: the prepared data sets, domain by domain."""

from pathlib import Path

import pandas as pd

from fedecider.domains import MANIFEST, read_metas
from figures import style
from figures.table import Column, Table

COUNTS = ("users", "items", "interactions", "density", "median_history")
_COLUMNS = ["dataset", "domain", *COUNTS, "kind", "folder"]


def numbers(results: str | Path) -> pd.DataFrame:
    """One row per prepared domain: dataset, domain, ``COUNTS``, kind, folder.

    ``results`` is the folder with data/<dataset>/; its domains are those that its manifest names.
    density is interactions / (users x items); median_history the median of a user's interactions,
    test and validation items included; kind the format of the raw files; folder is relative to
    ``results``. Raises FileNotFoundError or ValueError, naming the file, for a data set without a
    manifest and a meta.json that is missing, not as the manifest says, or lacks a count.
    """
    results, rows = Path(results), []
    files = (*results.glob(f"data/[!.]*/{MANIFEST}"), *results.glob("data/[!.]*/[!.]*/meta.json"))
    datasets = {file.relative_to(results).parts[1] for file in files}
    for dataset in sorted(datasets):
        for domain, meta in read_metas(results / "data" / dataset).items():
            folder, counts = results / "data" / dataset / domain, meta.get("result", {})
            missing = [name for name in COUNTS if name not in counts]
            if missing:
                raise ValueError(
                    f"{folder / 'meta.json'} does not tell {', '.join(missing)}: prepare this "
                    "domain anew"
                )
            rows.append(
                {
                    "dataset": meta["dataset"],
                    "domain": meta["domain"],
                    **{name: counts[name] for name in COUNTS},
                    "kind": meta.get("settings", {}).get("kind", ""),
                    "folder": folder.relative_to(results).as_posix(),
                }
            )
    return pd.DataFrame(rows, columns=_COLUMNS)


def table(numbers: pd.DataFrame) -> Table:
    """Data set by data set, one row per domain."""
    planted = sorted(set(numbers[numbers["kind"] == "planted"]["dataset"]))
    generated = ", ".join(style.dataset_label(name) for name in planted)
    notes = [f"Generated, with planted structure: {generated}."] if planted else []
    return Table(
        label="datasets",
        caption="Data sets after filtering. Density: share of all user-item pairs; history: "
        "median of a user's interactions, those for validation and test included.",
        columns=(
            Column("dataset", "Data set", align="l", words=style.dataset_label),
            Column("domain", "Domain", align="l", words=style.domain_label),
            Column("users", "Users", ",.0f"),
            Column("items", "Items", ",.0f"),
            Column("interactions", "Interactions", ",.0f"),
            Column("density", "Density, %", ".3f", scale=100),
            Column("median_history", "Median history", ".1f"),
        ),
        rows=numbers,
        notes=tuple(notes) if len(numbers) else ("No prepared data.",),
        block="dataset",
        sources="folder",
    )
