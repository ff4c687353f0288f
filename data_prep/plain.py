"""Own data: two plain tables per domain, CSV (also gzipped or with tabs) or Parquet.

`<domain>.interactions.{csv,tsv,parquet}`: user, item, and rating, timestamp, position, of which
rating may be empty or absent and of timestamp (a number since 1970 or an ISO date and time, UTC if
it names no zone) and position (an integer that orders a user's rows) either is enough.
`<domain>.items.{csv,tsv,parquet}`: item, title. Other columns are ignored.
"""

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from . import columnar, delimited
from .reading import FormatError
from .settings import Settings
from .store import Files, Store

KIND = "plain"
_NAME = re.compile(r"([^.].*)\.(interactions|items)\.((?:csv|tsv)(?:\.gz)?|parquet)")


def find(folder: Path, domains: list[str] | None = None) -> dict[str, Files]:
    """Domain -> its files, sorted by domain; with `domains`, these alone are looked at.

    Raises FileNotFoundError if there is no domain or one lacks one of its two files, and
    FormatError if a table is there twice in different formats.
    """
    tables: dict[str, dict[str, list[Path]]] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if match := _NAME.fullmatch(path.name):
            roles = tables.setdefault(match[1], {"interactions": [], "items": []})
            roles[match[2]].append(path)
    pairs = {}
    for domain in sorted(tables):
        if domains is not None and domain not in domains:
            if all(tables[domain].values()):  # named where a domain is asked for that is not there
                pairs[domain] = _first(tables[domain])
            continue
        for role, paths in tables[domain].items():
            if len(paths) > 1:
                raise FormatError(
                    f"{paths[1]}: the same table as {paths[0].name}; keep one of them"
                )
            if not paths:
                (other,) = [paths for paths in tables[domain].values() if paths]
                raise FileNotFoundError(
                    f"{folder}: expected {domain}.{role}.csv, .csv.gz or .parquet beside "
                    f"{other[0].name}"
                )
        pairs[domain] = _first(tables[domain])
    if not pairs:
        raise FileNotFoundError(
            f"{folder}: expected <domain>.interactions.csv and <domain>.items.csv "
            "(or .csv.gz, .parquet), found none"
        )
    return pairs


def _first(roles: dict[str, list[Path]]) -> Files:
    return Files(roles["interactions"][0], roles["items"][0])


def load(store: Store, files: Files, settings: Settings) -> None:
    """Fill the store from one domain's tables; raises FormatError if columns are missing."""
    store.source("interactions", files.interactions, KIND)
    store.source("items", files.items, KIND)
    fields = """SELECT line, broken, value, "user"::VARCHAR AS user_id, item::VARCHAR AS item_id,
            rating::VARCHAR AS rating, timestamp::VARCHAR AS time, NULL::DOUBLE AS moment,
            position::VARCHAR AS position FROM batch"""
    names = {"user": "user", "item": "item", "time": "timestamp"}
    batches = _batches(
        files.interactions, ["user", "item"], ["rating", "timestamp", "position"], settings,
        store.oddities["interactions"], ("timestamp", "position"),
    )  # fmt: skip
    store.add_interactions(batches, fields, names, order=True)
    titles = """SELECT line, broken, value, item::VARCHAR AS item_id, title::VARCHAR AS title
        FROM batch"""
    batches = _batches(files.items, ["item", "title"], [], settings, store.oddities["items"])
    store.add_items(batches, titles, "item")


def _batches(
    path: Path,
    required: list[str],
    optional: list[str],
    settings: Settings,
    oddities: Counter[str],
    any_of: tuple[str, ...] = (),
) -> Iterator[pa.Table]:
    if path.suffix == ".parquet":
        return columnar.parquet_batches(path, required, optional, any_of)
    return delimited.table_batches(path, required, optional, settings.progress, any_of, oddities)
