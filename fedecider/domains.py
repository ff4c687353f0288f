"""A prepared domain as the clients read it (written by `data_prep`)."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd

_TABLES = {
    "items": ["item_id", "title"],
    "splits": ["user_id", "item_id", "position", "split"],
    "candidates": ["user_id", "split", "item_id", "negatives"],
}


@dataclass(frozen=True)
class Domain:
    """One client's data: its catalogue and its users' histories, split leave-one-out."""

    name: str
    items: pd.Series  # item_id -> title, sorted by item_id
    train: dict[str, list[str]]  # user_id -> item_ids, oldest first
    valid: dict[str, str]  # user_id -> item_id
    test: dict[str, str]
    negatives: dict[tuple[str, str], list[str]]  # (split, user_id) -> sampled unseen item_ids

    def history(self, user: str, split: str) -> list[str]:
        """What precedes the user's item of this split: test also sees the validation item."""
        return self.train[user] + ([self.valid[user]] if split == "test" else [])

    def target(self, user: str, split: str) -> str:
        """The user's held-out item."""
        return (self.test if split == "test" else self.valid)[user]

    @cached_property
    def popularity(self) -> pd.Series:
        """Number of training interactions of every item of the catalogue."""
        counts = pd.Series([item for items in self.train.values() for item in items]).value_counts()
        return counts.reindex(self.items.index, fill_value=0)


def read_domain(folder: Path | str) -> Domain:
    """Read `<folder>/{items,splits,candidates}.parquet`.

    Raises FileNotFoundError or ValueError, naming the file, if one is missing, lacks a column, or
    the tables contradict each other.
    """
    folder = Path(folder)
    frames = {}
    for table, columns in _TABLES.items():
        path = folder / f"{table}.parquet"
        if not path.exists():
            raise FileNotFoundError(f"{path} is missing: prepare the domain with data_prep first")
        frames[table] = pd.read_parquet(path)
        absent = sorted(set(columns) - set(frames[table].columns))
        if absent:
            raise ValueError(f"{path} lacks the columns {', '.join(absent)}")
    items = frames["items"].set_index("item_id")["title"].sort_index()
    splits = frames["splits"].sort_values(["user_id", "position"])
    unknown = sorted(set(splits["item_id"]) - set(items.index))
    if unknown:
        raise ValueError(f"{folder / 'splits.parquet'} names item {unknown[0]!r}, not in the items")
    parts = {name: part for name, part in splits.groupby("split")}
    for name in ("train", "valid", "test"):
        if name not in parts:
            raise ValueError(f"{folder / 'splits.parquet'} has no {name} rows")
    train = {user: rows.tolist() for user, rows in parts["train"].groupby("user_id")["item_id"]}
    held = {
        name: dict(zip(parts[name]["user_id"], parts[name]["item_id"], strict=True))
        for name in ("valid", "test")
    }
    negatives = {
        (row.split, row.user_id): list(row.negatives) for row in frames["candidates"].itertuples()
    }
    return Domain(folder.name, items, train, held["valid"], held["test"], negatives)


def read_domains(folder: Path | str, names: list[str] | None = None) -> list[Domain]:
    """All prepared domains below a folder, in sorted order, or the named ones.

    Raises FileNotFoundError if there is none, or a named one is missing.
    """
    folder = Path(folder)
    found = sorted(path.parent.name for path in folder.glob("*/splits.parquet"))
    if not found:
        raise FileNotFoundError(
            f"no prepared domains in {folder}: run the notebook prepare_goodreads or "
            "prepare_amazon first"
        )
    missing = sorted(set(names or []) - set(found))
    if missing:
        raise FileNotFoundError(f"{folder} has no domain {missing[0]!r}, only {', '.join(found)}")
    return [read_domain(folder / name) for name in sorted(names or found)]


def read_affinity(folder: Path | str) -> pd.DataFrame | None:
    """The planted affinities of embedded data, domains x domains; None for real data."""
    path = Path(folder) / "affinity.json"
    if not path.exists():
        return None
    planted = json.loads(path.read_text())
    return pd.DataFrame(planted["affinity"], planted["domains"], planted["domains"])
