"""Own data: two plain tables per domain, CSV, gzipped CSV or Parquet.

`<domain>.interactions.{csv,csv.gz,parquet}`: user, item, and rating, timestamp, position, of which
rating may be empty or absent and of timestamp (seconds since 1970 or an ISO date and time, UTC if
it names no zone) and position (an integer that orders a user's rows) either is enough.
`<domain>.items.{csv,csv.gz,parquet}`: item, title. Other columns are ignored.
"""

import re
from collections.abc import Callable, Iterable
from pathlib import Path

import pyarrow as pa

from .reading import FormatError, table_batches
from .settings import Settings
from .store import Files, Store

KIND = "plain"
_NAME = re.compile(r"(.+)\.(interactions|items)\.(csv|csv\.gz|parquet)")


def find(folder: Path) -> dict[str, Files]:
    """Domain -> (interactions file, items file), sorted by domain.

    Raises FileNotFoundError if there is no domain or one lacks one of its two files, and
    FormatError if a table is there twice in different formats.
    """
    domains: dict[str, dict[str, Path]] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if match := _NAME.fullmatch(path.name):
            domain, role = match[1], match[2]
            files = domains.setdefault(domain, {})
            if role in files:
                raise FormatError(f"{path}: the same table as {files[role].name}; keep one of them")
            files[role] = path
    for domain, files in domains.items():
        for role in ("interactions", "items"):
            if role not in files:
                raise FileNotFoundError(
                    f"{folder}: expected {domain}.{role}.csv, .csv.gz or .parquet beside "
                    f"{next(iter(files.values())).name}"
                )
    if not domains:
        raise FileNotFoundError(
            f"{folder}: expected <domain>.interactions.csv and <domain>.items.csv "
            "(or .csv.gz, .parquet), found none"
        )
    return {
        name: (domains[name]["interactions"], domains[name]["items"]) for name in sorted(domains)
    }


def load(store: Store, files: Files, settings: Settings) -> None:
    """Fill the store from one domain's tables; raises FormatError if columns are missing."""
    interactions, items = files
    store.source("interactions", interactions, KIND)
    store.source("items", items, KIND)
    # A number is seconds; anything else has to be a date.
    fields = """SELECT line, NULL::VARCHAR AS broken, "user"::VARCHAR AS user_id,
            item::VARCHAR AS item_id, rating::VARCHAR AS rating, timestamp::VARCHAR AS time,
            coalesce(try_cast(timestamp::VARCHAR AS DOUBLE) * 1000,
                epoch_ms(try_cast(timestamp::VARCHAR AS TIMESTAMPTZ))::DOUBLE) AS moment,
            position::VARCHAR AS position, NULL::VARCHAR AS dropped FROM batch"""
    names = {"user": "user", "item": "item", "time": "timestamp"}
    _add(
        store,
        "interactions",
        interactions,
        (["user", "item"], ["rating", "timestamp", "position"], ("timestamp", "position")),
        lambda batches: store.add_interactions(batches, fields, names, order=True),
    )
    titles = """SELECT line, NULL::VARCHAR AS broken, item::VARCHAR AS item_id,
            title::VARCHAR AS title FROM batch"""
    _add(
        store,
        "items",
        items,
        (["item", "title"], [], ()),
        lambda batches: store.add_items(batches, titles, "item"),
    )


def _add(
    store: Store,
    table: str,
    path: Path,
    columns: tuple[list[str], list[str], tuple[str, ...]],
    add: Callable[[Iterable[pa.Table]], None],
) -> None:
    """Hand the table's batches to `add`; columns: required, optional, at least one of these."""
    rejected = store.rejected[table]
    required, optional, any_of = columns
    add(table_batches(path, required, optional, rejected, store.settings.progress, any_of))
    # These rows never reach the store, which counts the others.
    store.lines[table] += rejected["broken line"]
    if not rejected["broken line"]:
        del rejected["broken line"]
