"""Goodreads (UCSD Book Graph): one pair of JSON-lines files per genre.

`goodreads_interactions_<genre>.json.gz`: user_id, book_id, is_read, rating (0: none), date_added,
read_at ("Thu Mar 30 10:59:26 -0700 2017"). `goodreads_books_<genre>.json.gz`: book_id, title,
title_without_series. Plain .json is read as well. Source: Wan & McAuley, RecSys 2018; Wan et al.,
ACL 2019.
"""

import re
from pathlib import Path

from .reading import FormatError, line_batches, sniff
from .settings import Settings
from .store import LATEST, Files, Store, json_fields

KIND = "goodreads"
_NAME = re.compile(r"goodreads_(interactions|books)_(.+)\.json(\.gz)?")


def find(folder: Path) -> dict[str, Files]:
    """Genre -> (interactions file, books file), sorted by genre.

    Raises FileNotFoundError if there is no genre or a genre lacks one of its two files, and
    FormatError if a file is there twice (plain and gz).
    """
    genres: dict[str, dict[str, Path]] = {}
    for path in sorted(folder.glob("goodreads_*")):
        if match := _NAME.fullmatch(path.name):
            role, genre = match[1], match[2]
            files = genres.setdefault(genre, {})
            if role in files:
                raise FormatError(f"{path}: the same file as {files[role].name}; keep one of them")
            files[role] = path
    for genre, files in genres.items():
        for role in ("interactions", "books"):
            if role not in files:
                raise FileNotFoundError(
                    f"{folder}: expected goodreads_{role}_{genre}.json.gz beside "
                    f"{next(iter(files.values())).name}"
                )
    if not genres:
        raise FileNotFoundError(
            f"{folder}: expected goodreads_interactions_<genre>.json.gz and "
            "goodreads_books_<genre>.json.gz, found none"
        )
    return {genre: (files["interactions"], files["books"]) for genre, files in genres.items()}


def load(store: Store, files: Files, settings: Settings) -> None:
    """Fill the store from one genre's files.

    An interaction's time is read_at if it can be read and lies between 1970 and 2099, else
    date_added. With `only_read`, books that were only shelved are dropped and counted.
    """
    interactions, books = files
    sniff(interactions, {"Goodreads": [("user_id",), ("book_id",), ("date_added", "read_at")]})
    sniff(books, {"Goodreads": [("book_id",), ("title", "title_without_series")]})
    store.source("interactions", interactions, KIND)
    store.source("items", books, KIND)
    raw = json_fields(
        {
            "user_id": ["user_id"],
            "item_id": ["book_id"],
            "stars": ["rating"],
            "is_read": ["is_read"],
            "read_at": ["read_at"],
            "date_added": ["date_added"],
        }
    )
    read, added = (
        f"CAST(epoch_ms(try_strptime({name}, '%a %b %d %H:%M:%S %z %Y')) AS DOUBLE)"
        for name in ("read_at", "date_added")
    )
    drop = "CASE WHEN lower(is_read) IS DISTINCT FROM 'true' THEN 'not read' END"
    # 0 stars is Goodreads' way to say that there is no rating.
    fields = f"""SELECT line, broken, user_id, item_id, NULL::VARCHAR AS position,
            CASE WHEN try_cast(stars AS DOUBLE) = 0 THEN NULL ELSE stars END AS rating,
            coalesce(read_at, date_added) AS time,
            CASE WHEN {read} BETWEEN 0 AND {LATEST - 1} THEN {read}
                 ELSE coalesce({added}, {read}) END AS moment,
            {drop if settings.only_read else "NULL::VARCHAR"} AS dropped
        FROM ({raw})"""
    names = {"user": "user_id", "item": "book_id", "time": "date_added"}
    store.add_interactions(line_batches(interactions, settings.progress), fields, names)
    titles = json_fields({"item_id": ["book_id"], "title": ["title_without_series", "title"]})
    store.add_items(line_batches(books, settings.progress), titles, "book_id")
