"""A prepared domain as the clients read it (written by `data_prep`)."""

import difflib
import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds

SPLITS = ("train", "valid", "test")
MANIFEST = "manifest.json"  # beside the domains: which they are, and the sha256 of their files
AFFINITY = "affinity.json"  # beside it, of generated data alone

_TABLES = {
    "items": ["item_id", "title"],
    "splits": ["user_id", "item_id", "position", "split"],
    "candidates": ["user_id", "split", "item_id", "negatives"],
}


def some_users(users: Iterable[str], limit: int | None) -> list[str]:
    """A fixed sample of users in sorted order; smaller limits are subsets of larger ones.

    It does not depend on a run's seed: methods and seeds are compared on the same users.
    """
    users = sorted(users)
    if limit is None or limit >= len(users):
        return users
    chosen = np.random.default_rng(0).permutation(len(users))[:limit]
    return [users[index] for index in sorted(chosen)]


@dataclass(frozen=True)
class Domain:
    """One client's data: its catalogue and its sampled users' histories, split leave-one-out."""

    name: str
    items: pd.Series  # item_id -> title, sorted by item_id
    popularity: pd.Series  # item_id -> training interactions of all users, not only the sampled
    users: dict[str, list[str]]  # split -> sampled user_ids, sorted
    train: dict[str, list[str]]  # user_id -> item_ids, oldest first
    valid: dict[str, str]  # user_id -> item_id
    test: dict[str, str]
    negatives: dict[tuple[str, str], list[str]]  # (split, user_id) -> sampled unseen item_ids
    folder: Path  # where it was read from

    def history(self, user: str, split: str) -> list[str]:
        """What precedes the user's item of this split: test also sees the validation item."""
        return self.train[user] + ([self.valid[user]] if split == "test" else [])

    def target(self, user: str, split: str) -> str:
        """The user's held-out item."""
        return (self.test if split == "test" else self.valid)[user]


def read_domain(folder: Path | str, **limits: int | None) -> Domain:
    """Read `<folder>/{items,splits,candidates}.parquet`.

    `train`, `valid` and `test` limit the number of users of each split (`some_users`); no row of
    another user is kept, so that a domain of 10^8 rows fits into memory. Raises FileNotFoundError
    or ValueError, naming the file, if one is missing, is not as the manifest beside the domain's
    folder says, lacks a column, or the tables contradict each other.
    """
    folder = Path(folder)
    _check_files(folder, [f"{name}.parquet" for name in _TABLES])
    tables = {
        name: _table(folder / f"{name}.parquet", columns) for name, columns in _TABLES.items()
    }
    items = tables["items"].to_table().to_pandas().set_index("item_id")["title"].sort_index()
    users = {}
    for split in SPLITS:
        rows = tables["splits"].to_table(["user_id"], filter=ds.field("split") == split)
        if not rows.num_rows:
            raise ValueError(f"{folder / 'splits.parquet'} has no {split} rows")
        users[split] = some_users(rows["user_id"].unique().to_pylist(), limits.get(split))
    everyone = pa.array(sorted(set().union(*users.values())))
    sampled = ds.field("user_id").isin(everyone)
    splits = tables["splits"].to_table(filter=sampled).to_pandas()
    splits = splits.sort_values(["user_id", "position"])
    counted = tables["splits"].to_table(["item_id"], filter=ds.field("split") == "train")
    counted = counted.group_by("item_id").aggregate([("item_id", "count")]).to_pandas()
    counts = counted.set_index("item_id")["item_id_count"]
    unknown = sorted((set(splits["item_id"]) | set(counts.index)) - set(items.index))
    if unknown:
        raise ValueError(f"{folder / 'splits.parquet'} names item {unknown[0]!r}, not in the items")
    parts = {name: part for name, part in splits.groupby("split")}
    held = {
        name: dict(zip(parts[name]["user_id"], parts[name]["item_id"], strict=True))
        for name in ("valid", "test")
    }
    held_out = pa.array(sorted({*users["valid"], *users["test"]}))
    listed = tables["candidates"].to_table(filter=ds.field("user_id").isin(held_out)).to_pandas()
    return Domain(
        name=folder.name,
        items=items,
        popularity=counts.reindex(items.index, fill_value=0),
        users=users,
        train={user: rows.tolist() for user, rows in parts["train"].groupby("user_id")["item_id"]},
        valid=held["valid"],
        test=held["test"],
        negatives={(row.split, row.user_id): list(row.negatives) for row in listed.itertuples()},
        folder=folder,
    )


def interactions(folder: Path) -> pd.DataFrame:
    """Training interactions of all users of a prepared domain: user_id, item_id, sorted."""
    table = _table(folder / "splits.parquet", _TABLES["splits"])
    rows = table.to_table(["user_id", "item_id", "position"], filter=ds.field("split") == "train")
    rows = rows.sort_by([("user_id", "ascending"), ("position", "ascending")])
    return rows.select(["user_id", "item_id"]).to_pandas()


def _table(path: Path, columns: list[str]) -> ds.Dataset:
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing: prepare the domain with data_prep first")
    table = ds.dataset(path)
    absent = sorted(set(columns) - set(table.schema.names))
    if absent:
        raise ValueError(f"{path} lacks the columns {', '.join(absent)}")
    return table


def read_manifest(folder: Path | str) -> dict:
    """What a data set's last finished preparation says of it.

    Raises FileNotFoundError if there is none, ValueError if it cannot be read.
    """
    path = Path(folder) / MANIFEST
    if not path.is_file():
        if any(path.parent.glob("[!.]*/splits.parquet")):
            raise FileNotFoundError(
                f"{path} is missing: the data set was prepared by an earlier version, or its "
                "preparation was stopped at its end; prepare it again"
            )
        raise FileNotFoundError(
            f"no prepared domains in {folder}: run the notebook 01_prepare first"
            + _nearest(path.parent)
        )
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        domains = {name: dict(files) for name, files in manifest["domains"].items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"{path} is damaged: prepare the data set again") from None
    return {**manifest, "domains": domains}


def _nearest(folder: Path) -> str:
    """A clause on the data set that may be meant: the path with its first absent part corrected."""
    folder = Path(os.path.abspath(folder))
    base = next(above for above in folder.parents if above.is_dir())
    _, *rest = folder.relative_to(base).parts
    likely = (path.joinpath(*rest) for path in base.iterdir() if path.is_dir())
    known = sorted(str(path) for path in likely if (path / MANIFEST).is_file())
    near = difflib.get_close_matches(str(folder), known, n=1)
    return f", or correct the name; the nearest data set that is there is {near[0]}" if near else ""


def _check_files(folder: Path, names: Iterable[str]) -> None:
    """Raises FileNotFoundError or ValueError for a file that is not as it was prepared."""
    domains = read_manifest(folder.parent)["domains"]
    if folder.name not in domains:
        raise FileNotFoundError(
            f"{folder.parent} has no domain {folder.name!r}, only {', '.join(sorted(domains))}"
        )
    for name in names:
        _check_file(folder / name, domains[folder.name].get(name))


def _check_file(path: Path, expected: str | None) -> None:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: prepare the domain with data_prep first")
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != expected:
        raise ValueError(
            f"{path} is damaged or was changed after its preparation: its sha256 is "
            f"{digest[:12]}..., {MANIFEST} says {str(expected)[:12]}...; prepare the data set again"
        )


def read_metas(folder: Path | str) -> dict[str, dict]:
    """meta.json of every domain that a data set's manifest names, in sorted order.

    Raises FileNotFoundError or ValueError, naming the file, if there is no manifest, or one is
    missing or not as the manifest says.
    """
    folder, metas = Path(folder), {}
    for name in sorted(read_manifest(folder)["domains"]):
        _check_files(folder / name, ["meta.json"])
        metas[name] = json.loads((folder / name / "meta.json").read_text(encoding="utf-8"))
    return metas


def read_domains(
    folder: Path | str, names: list[str] | None = None, **limits: int | None
) -> list[Domain]:
    """All domains that a folder's manifest names, in sorted order, or those of `names`.

    Limits as above. Raises FileNotFoundError if there is no manifest, or a named domain is not in
    it, and ValueError for an empty list and a name that is there twice.
    """
    folder = Path(folder)
    prepared = sorted(read_manifest(folder)["domains"])
    if names is not None and (not names or len(set(names)) < len(names)):
        raise ValueError(f"domains {names}: expected different names of {', '.join(prepared)}")
    missing = sorted(set(names or []) - set(prepared))
    if missing:
        raise FileNotFoundError(
            f"{folder} has no domain {missing[0]!r}, only {', '.join(prepared)}"
        )
    return [read_domain(folder / name, **limits) for name in sorted(names or prepared)]


def data_digest(domains: Iterable[Domain]) -> str:
    """Digest of all that a method reads: equal content gives equal digests, wherever it lies."""
    digest = hashlib.sha256()
    for domain in domains:
        for piece in _content(domain):
            digest.update(json.dumps(piece, default=str).encode() + b"\n")
    return digest.hexdigest()[:24]


def interactions_digest(domains: Iterable[Domain]) -> str:
    """Digest of the training interactions of all users, for a method that reads more than a sample.

    Beside the digest of the sample, which every method on the data has in common.
    """
    digest = hashlib.sha256()
    for domain in domains:
        digest.update(
            json.dumps([domain.name, interactions(domain.folder).values.tolist()]).encode()
        )
    return digest.hexdigest()[:24]


def _content(domain: Domain) -> Iterator:
    """A domain piece by piece, in an order that nothing but its content decides."""
    yield domain.name
    yield from zip(domain.items.index, domain.items, domain.popularity.tolist(), strict=True)
    for split in SPLITS:
        yield split, domain.users[split]
    for held in (domain.train, domain.valid, domain.test, domain.negatives):
        yield from sorted(held.items())


def read_affinity(folder: Path | str) -> pd.DataFrame | None:
    """The planted affinities of embedded data, domains x domains; None for real data.

    Raises FileNotFoundError or ValueError, naming the file, if it is not of that form, and if it is
    missing or another one than the entry `files` of the manifest says.
    """
    path = Path(folder) / AFFINITY
    if (path.parent / MANIFEST).is_file():
        files = read_manifest(folder).get("files", {})  # older preparations name none
        if AFFINITY in files:
            _check_file(path, files[AFFINITY])
    if not path.exists():
        return None
    try:
        planted = json.loads(path.read_text(encoding="utf-8"))
        domains, values = planted["domains"], np.asarray(planted["affinity"], dtype=float)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path}: expected JSON with 'domains' and 'affinity' (rows of numbers): {error}"
        ) from error
    if values.shape != (len(domains), len(domains)):
        raise ValueError(
            f"{path}: affinity has shape {values.shape}; expected {len(domains)} x {len(domains)}"
        )
    return pd.DataFrame(values, index=domains, columns=domains)
