"""Packs: finished runs in one Parquet table per kind, with users numbered and no weights.

runs.parquet     one row per run: method, settings, data digest, commit, versions, choices
metrics.parquet  ranks.parquet  rounds.parquet  alphas.parquet: as in a run folder, with the run
geometry.parquet of the last round of the method local alone, the rest is large
search.parquet   one row per try of a search

The same runs give the same bytes, whatever the order in which they were packed.
"""

import json
import os
from collections.abc import Hashable
from pathlib import Path, PurePosixPath
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from fedecider import run_folders
from fedecider.run_folders import METHOD, RUNS, SEARCH
from fedecider.runs import COLUMNS, atomic

_INT = ["seed", "order", "users", "rank", "round", "bytes_up", "bytes_down", "steps", "try"]
_FLOAT = [
    "value",
    "train_loss",
    "valid_loss",
    "seconds",
    "update_norm",
    "memory",
    "alpha",
    "cosine",
    "norm",
]
_FLOAT += ["ranking_seconds", "loss"]
_TYPES = {column: pa.int64() for column in _INT} | {column: pa.float64() for column in _FLOAT}
_TYPES |= {"chosen": pa.bool_()}
_COLUMNS = {
    **{kind: ["run", *columns] for kind, columns in COLUMNS.items()},
    "search": SEARCH,
    "runs": RUNS,  # written last: what it does not name is not read
}


def is_pack(folder: Path) -> bool:
    """Whether a folder holds a pack."""
    return (folder / "runs.parquet").is_file()


def read(pack: Path, kind: str) -> pd.DataFrame:
    """One table of a pack; empty where there is no pack yet."""
    if not (pack / f"{kind}.parquet").exists():
        return pd.DataFrame(columns=_COLUMNS[kind])
    return pd.read_parquet(pack / f"{kind}.parquet")


def pack(results: Path | str, into: Path | str) -> list[str]:
    """Pack the finished runs and the searches of a results folder into a pack, new or old.

    Returns the names of the runs that are new or changed; a run of the same name is replaced, the
    others stay. A method is called and drawn in all of them as in the run that came last. Users
    are numbered by their place in the sorted ids of their domain. Raises ValueError, before
    anything is written, for a run on other data than those of the same data set in the pack: their
    users would not be the same.
    """
    results, into = Path(os.path.abspath(results)), Path(into)
    tables: dict[str, list[pd.DataFrame]] = {kind: [] for kind in _COLUMNS}
    for part in ("runs", "sweeps"):
        if (results / part).is_dir():
            for kind, table in _tables_of(results / part).items():
                tables[kind].append(table)
    tables["search"].append(run_folders.tries(results / "search"))
    new = {kind: _joined(kind, parts) for kind, parts in tables.items()}
    held = {kind: read(into, kind) for kind in _COLUMNS}
    _refuse_other_data(new["runs"], held["runs"], results, into)
    changed = _changed(new["runs"], held["runs"])
    methods = pd.concat([new["search"], new["runs"]])[METHOD].drop_duplicates("method", keep="last")
    for kind in _COLUMNS:
        key = ["dataset", "method"] if kind == "search" else ["run"]
        replaced = new[kind][key] if kind == "search" else pd.DataFrame({"run": changed})
        kept = held[kind][~_among(held[kind][key], replaced)]
        fresh = new[kind][_among(new[kind][key], replaced)]
        _write(into / f"{kind}.parquet", _joined(kind, [kept, fresh]), kind, methods)
    return changed


def _joined(kind: str, parts: list[pd.DataFrame]) -> pd.DataFrame:
    parts = [part for part in parts if len(part)]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=_COLUMNS[kind])


def _among(keys: pd.DataFrame, others: pd.DataFrame) -> pd.Series:
    """Which rows of `keys` are rows of `others`."""
    rows = set(others.itertuples(index=False, name=None))
    return pd.Series([key in rows for key in keys.itertuples(index=False, name=None)], dtype=bool)


def _tables_of(folder: Path) -> dict[str, pd.DataFrame]:
    """Every table but the search's of the run folders below a folder, runs under today's names."""
    runs = run_folders.records(folder)
    rows = {kind: run_folders.rows(folder, runs, kind) for kind in COLUMNS if kind != "geometry"}
    rows["ranks"] = _numbered(rows["ranks"])
    local = run_folders.rows(folder, runs[runs["method"] == "local"], "geometry")
    last = local.groupby("run")["round"].transform("max")
    rows["geometry"] = local[local["round"] == last]
    names = {row["run"]: _named_today(row["run"], row["method"]) for _, row in runs.iterrows()}
    for kind, table in rows.items():
        rows[kind] = table.assign(run=table["run"].map(names))
    configs = [
        _in_folder(config, names[run])
        for run, config in zip(runs["run"], runs["config"], strict=True)
    ]
    return {**rows, "runs": runs.assign(run=runs["run"].map(names), config=configs)}


def _numbered(ranks: pd.DataFrame) -> pd.DataFrame:
    """Users by their place in the sorted ids of their domain: the same user has the same number."""
    number = ranks.groupby(["run", "domain"])["user_id"].rank(method="dense").astype(int) - 1
    return ranks.assign(user_id=number.map("{:05d}".format))


def _named_today(run: str, method: str) -> str:
    """A sweep by the name that its setting has today: sweeps/<dataset>/<setting>-<value>-..."""
    part, *between, last = run.split("/")
    if part != "sweeps":
        return run
    setting, dash, rest = last.partition("-")
    (today,) = run_folders.plain({setting: None}, method)
    return "/".join([part, *between, today + dash + rest])


def _in_folder(config: str, run: str) -> str:
    folder = "/".join(PurePosixPath(run).parts[-2:])
    return run_folders.text(json.loads(config) | {"folder": folder})


def _changed(new: pd.DataFrame, held: pd.DataFrame) -> list[str]:
    """Names of the new runs that the pack does not hold as they are."""
    columns = ["run", "config", "data_digest", "versions", "choices", "finished"]
    known = _among(new[columns].fillna(""), held[columns].fillna(""))
    return sorted(new.loc[~known.to_numpy(), "run"], key=lambda run: run.split("/"))


def _refuse_other_data(new: pd.DataFrame, held: pd.DataFrame, results: Path, into: Path) -> None:
    digests = {_read_by(row): row["data_digest"] for row in held.to_dict("records")}
    for row in new.to_dict("records"):
        if digests.setdefault(_read_by(row), row["data_digest"]) != row["data_digest"]:
            raise ValueError(
                f"{results / row['run']} ran on other data than the {row['dataset']} runs in "
                f"{into}: name another gallery, or delete those runs first"
            )


def _read_by(row: dict[Hashable, Any]) -> tuple[str, str, int | None]:
    """Runs for which this is equal read the same of the same data: their digests have to agree.

    A sweep may vary the number of training users. Test users have to be the same in all: they are
    numbered by their place among them.
    """
    part = row["run"].split("/")[0]
    users = json.loads(row["config"])["data"].get("train_users") if part == "sweeps" else None
    return row["dataset"], part, users


def _write(path: Path, table: pd.DataFrame, kind: str, methods: pd.DataFrame) -> None:
    """One table, sorted, in types of its own: the writer adds neither a date nor pandas' notes."""
    if "method" in table:
        named = table[["method"]].merge(methods, on="method", how="left")[METHOD[1:]]
        for column in METHOD[1:]:
            table[column] = named[column].fillna(table[column])
    by = "run" if "run" in table else ["dataset", "method"]
    key = run_folders.in_order if "run" in table else None
    table = table.sort_values(by, key=key, kind="stable", ignore_index=True)
    schema = pa.schema([(column, _TYPES.get(column, pa.string())) for column in _COLUMNS[kind]])
    arrow = pa.Table.from_pandas(table[_COLUMNS[kind]], schema=schema, preserve_index=False)
    with atomic(path) as beside:
        pq.write_table(arrow.replace_schema_metadata(None), beside, compression="zstd")
