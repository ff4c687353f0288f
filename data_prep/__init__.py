"""Raw dumps in, prepared domains out. See README.md beside this file for every format.

Public: prepare and what it is given and raises (Settings, FormatError, EmptyDomainError),
FORMATS with the reader per kind, write_dumps for the generated raw files, rejections and examples
to look at the outcome.
"""

import json
import os
from pathlib import Path
from typing import Any

import pandas as pd

from . import planted
from .domains import EmptyDomainError, prepare_domain
from .formats import FORMATS
from .planted import write_dumps
from .reading import FormatError
from .settings import Settings

__all__ = [
    "FORMATS",
    "EmptyDomainError",
    "FormatError",
    "Settings",
    "examples",
    "prepare",
    "rejections",
    "write_dumps",
]


def prepare(dataset: str, source: str | Path, out: str | Path, **settings: Any) -> pd.DataFrame:
    """Prepare every domain of a data set into out/<domain>/; return one row per domain.

    dataset: the data set's name; where it is a kind in FORMATS it also names its reader.
    source: the folder of raw files; for kind "planted" the dumps folder, generated if absent.
    settings: fields of Settings; `kind` defaults to the data set's name, else "plain".

    Writes interactions, items, splits, candidates (Parquet) and meta.json per domain; for planted
    data also out/affinity.json. Returns dataset, domain, users, items, interactions, density,
    median_history, filter_rounds, duplicates, rejected_interactions, rejected_items.
    Raises FileNotFoundError (no such file, no such domain), FormatError (a file of another
    format), EmptyDomainError (nothing left) and pydantic's ValidationError (bad settings).
    """
    # "planted" is no data set's name: its dumps are named as the published ones.
    published = dataset in FORMATS and dataset != planted.KIND
    settings.setdefault("kind", dataset if published else "plain")
    config = Settings(**settings)
    source, out = Path(source), Path(out)
    folder = source
    if config.kind == planted.KIND:
        if dataset not in planted.DATASETS:
            raise ValueError(
                f"dataset {dataset!r}: planted dumps exist for {', '.join(planted.DATASETS)}"
            )
        planted.ensure_dumps(
            source,
            seed=config.seed,
            users=config.planted_users,
            items=config.planted_items,
            history=config.planted_history,
        )
        folder = source / dataset
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: expected a folder with the raw files of {dataset}")
    reader = FORMATS[config.kind]
    files = reader.find(folder)
    absent = [name for name in config.domains or [] if name not in files]
    if absent:
        raise FileNotFoundError(
            f"{folder}: no domain {', '.join(absent)}; found {', '.join(files)}"
        )
    out.mkdir(parents=True, exist_ok=True)
    names = list(files) if config.domains is None else config.domains
    metas = [prepare_domain(dataset, name, reader, files[name], out, config) for name in names]
    _affinity(dataset, source if config.kind == planted.KIND else None, names, out)
    return summary(metas)


def summary(metas: list[dict]) -> pd.DataFrame:
    """The counts of several meta.json, one row per domain."""
    return pd.DataFrame(
        [
            {
                "dataset": meta["dataset"],
                "domain": meta["domain"],
                "users": meta["result"]["users"],
                "items": meta["result"]["items"],
                "interactions": meta["result"]["interactions"],
                "density": meta["result"]["density"],
                "median_history": meta["result"]["median_history"],
                "filter_rounds": meta["filter_rounds"],
                "duplicates": meta["interactions"]["duplicates"],
                "rejected_interactions": sum(meta["interactions"]["rejected"].values()),
                "rejected_items": sum(meta["items"]["rejected"].values()),
            }
            for meta in metas
        ]
    )


def rejections(out: str | Path) -> pd.DataFrame:
    """Every reason for which lines of the prepared domains under `out` were left out."""
    rows = []
    for path in sorted(Path(out).glob("[!.]*/meta.json")):
        meta = json.loads(path.read_text(encoding="utf-8"))
        for table in ("interactions", "items"):
            for reason, lines in meta[table]["rejected"].items():
                rows.append((meta["domain"], table, reason, lines))
    return pd.DataFrame(rows, columns=["domain", "file", "reason", "lines"])


def examples(domain: str | Path, users: int = 2, titles: int = 8) -> pd.DataFrame:
    """The last titles of a prepared domain's first users, oldest first: user, history."""
    domain = Path(domain)
    rows = pd.read_parquet(domain / "interactions.parquet", columns=["user_id", "item_id"])
    rows = rows[rows.user_id.isin(rows.user_id.drop_duplicates().head(users))]
    title_of = pd.read_parquet(domain / "items.parquet").set_index("item_id").title
    last = rows.assign(title=rows.item_id.map(title_of)).groupby("user_id").tail(titles)
    return last.groupby("user_id").title.agg("; ".join).rename("history").reset_index()


def _affinity(dataset: str, dumps: Path | None, names: list[str], out: Path) -> None:
    """Copy the planted truth of these domains; remove that of an earlier, planted preparation."""
    path = out / "affinity.json"
    if dumps is None:
        path.unlink(missing_ok=True)
        return
    truth = json.loads((dumps / "planted.json").read_text(encoding="utf-8"))["datasets"][dataset]
    indices = [truth["domains"].index(name) for name in names]
    affinity = [[truth["affinity"][i][j] for j in indices] for i in indices]
    partial = out / ".affinity.partial"
    partial.write_text(
        json.dumps({"domains": list(names), "affinity": affinity}, indent=2) + "\n",
        encoding="utf-8",
    )
    os.replace(partial, path)
