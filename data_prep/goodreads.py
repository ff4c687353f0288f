"""Goodreads (UCSD Book Graph): one pair of JSON-lines files per genre, or the whole set.

`goodreads_interactions_<genre>.json.gz`: user_id, book_id, is_read, rating (0: none), date_added,
read_at ("Thu Mar 30 10:59:26 -0700 2017"). `goodreads_books_<genre>.json.gz`: book_id, title,
title_without_series. Plain .json is read as well. The whole set is
`goodreads_interactions_dedup.json.gz` with `goodreads_books.json.gz`, and
`goodreads_book_genres_initial.json.gz` says of each book its genres. Source: Wan & McAuley, RecSys
2018; Wan et al., ACL 2019.
"""

import re
from pathlib import Path

import duckdb

from .reading import FormatError, line_batches
from .records import json_batches, sniff
from .settings import Settings
from .store import Files, Part, Store
from .times import LATEST

KIND = "goodreads"
WHOLE = "all"  # the whole set as one domain
_NAME = re.compile(r"goodreads_(interactions|books)_(.+)\.json(\.gz)?")
_WHOLE = {
    "interactions": "goodreads_interactions_dedup.json",
    "books": "goodreads_books.json",
    "genres": "goodreads_book_genres_initial.json",
}
# Domain, called as the genre's own files -> the genre's name in the genre file.
GENRES = {
    "children": "children",
    "comics_graphic": "comics, graphic",
    "fantasy_paranormal": "fantasy, paranormal",
    "fiction": "fiction",
    "history_biography": "history, historical fiction, biography",
    "mystery_thriller_crime": "mystery, thriller, crime",
    "non_fiction": "non-fiction",
    "poetry": "poetry",
    "romance": "romance",
    "young_adult": "young-adult",
}


def find(folder: Path, domains: list[str] | None = None) -> dict[str, Files]:
    """Genre -> its files, sorted; with `domains`, these alone are looked at.

    Where a folder holds no genre's files, or `domains` names what only the whole set has, the
    genres that the genre file names are parts of the whole set, or without that file it is one
    domain, "all". Without `domains`, a file without its other half is let be beside a complete
    genre or the whole set.
    Raises FileNotFoundError if there is no genre or a genre lacks one of its two files, and
    FormatError if a file is there twice (plain and gz) or a genre file names no genre.
    """
    genres, parts = _genres(folder), _parts(folder)
    pairs = {
        genre: Files(roles["interactions"][0], roles["books"][0])
        for genre, roles in genres.items()
        if all(roles.values())
    }
    for genre, roles in genres.items():
        complete = pairs or parts
        if genre in domains if domains is not None else genre in pairs or not complete:
            _check(folder, genre, roles)
    if domains is not None:
        if parts.keys() & set(domains) - {*pairs, WHOLE}:
            parts = _with_books(parts)
        pairs |= {name: files for name, files in parts.items() if name not in pairs}
    elif not pairs:
        parts = _with_books(parts)
        pairs = {name: files for name, files in parts.items() if name != WHOLE} or parts
    if not pairs:
        raise FileNotFoundError(
            f"{folder}: expected goodreads_interactions_<genre>.json.gz and "
            "goodreads_books_<genre>.json.gz, found none"
        )
    return dict(sorted(pairs.items()))


def half_pairs(folder: Path) -> dict[str, str]:
    """Name of each file of a genre that lacks its other half -> what is expected."""
    return {
        path.name: _lack(genre, roles)
        for genre, roles in _genres(folder).items()
        if not all(roles.values())
        for paths in roles.values()
        for path in paths
    }


def _genres(folder: Path) -> dict[str, dict[str, list[Path]]]:
    genres: dict[str, dict[str, list[Path]]] = {}
    for path in sorted(folder.glob("goodreads_*")):
        match = _NAME.fullmatch(path.name)
        if match and path.name.removesuffix(".gz") not in _WHOLE.values():
            roles = genres.setdefault(match[2], {"books": [], "interactions": []})
            roles[match[1]].append(path)
    return dict(sorted(genres.items()))


def _check(folder: Path, genre: str, roles: dict[str, list[Path]]) -> None:
    for paths in roles.values():
        if len(paths) > 1:
            raise FormatError(f"{paths[1]}: the same file as {paths[0].name}; keep one of them")
    if not all(roles.values()):
        raise FileNotFoundError(f"{folder}: {_lack(genre, roles)}")


def _lack(genre: str, roles: dict[str, list[Path]]) -> str:
    (role,) = [role for role, paths in roles.items() if not paths]
    (other,) = [paths for paths in roles.values() if paths]
    return f"expected goodreads_{role}_{genre}.json.gz beside {other[0].name}"


def _parts(folder: Path) -> dict[str, Files]:
    """The whole set as "all" and, with its genre file, by genre; nothing if it is not there."""
    held = {}
    for role, name in _WHOLE.items():
        paths = [folder / end for end in (name, f"{name}.gz") if (folder / end).is_file()]
        if paths:
            held[role] = paths[0]
    if "interactions" not in held or "books" not in held:
        return {}
    whole = Files(held["interactions"], held["books"])
    parts = {WHOLE: whole}
    if "genres" in held:
        for name, genre in GENRES.items():
            parts[name] = whole._replace(part=Part(held["genres"], genre))
    return parts


def _with_books(parts: dict[str, Files]) -> dict[str, Files]:
    """The parts whose genre the genre file gives to a book: a smaller set need not have all.

    Raises FormatError for a genre file that names none of GENRES.
    """
    paths = {files.part.path for files in parts.values() if files.part}
    named: set[str] = set()
    for path in paths:
        sniff(path, {"Goodreads": [("book_id",), ("genres",)]})
        with duckdb.connect() as connection:
            for batch in line_batches(path):
                connection.register("batch", batch)
                rows = connection.execute("""SELECT DISTINCT unnest(json_keys(text, '$.genres'))
                    FROM (SELECT CASE WHEN json_valid(text) THEN text END AS text FROM batch)""")
                named.update(genre for (genre,) in rows.fetchall())
        if not named & set(GENRES.values()):
            found = ", ".join(map(repr, sorted(named)[:5])) or "none"
            raise FormatError(
                f"{path}: expected books with genres of {'; '.join(GENRES.values())}, found {found}"
            )
    return {
        name: files for name, files in parts.items() if not files.part or files.part.genre in named
    }


def load(store: Store, files: Files, settings: Settings) -> None:
    """Fill the store from one genre's files.

    An interaction's time is read_at if it can be read and lies between 1970 and 2099, else
    date_added. With `only_read`, books that were only shelved are dropped and counted, as are,
    of the whole set, the books of other genres.
    """
    interactions, books = files.interactions, files.items
    sniff(interactions, {"Goodreads": [("user_id",), ("book_id",), ("date_added", "read_at")]})
    sniff(books, {"Goodreads": [("book_id",), ("title", "title_without_series")]})
    store.source("interactions", interactions, KIND)
    store.source("items", books, KIND)
    other_genre = "NULL::VARCHAR"
    if files.part:
        _load_genre(store, files.part, settings)
        other_genre = "CASE WHEN item_id NOT IN (FROM of_genre) THEN 'book of another genre' END"
    drop = "CASE WHEN lower(is_read) IS DISTINCT FROM 'true' THEN 'not read' END"
    moments = ", ".join(
        f"CAST(epoch_ms(try_strptime({name}, '%a %b %d %H:%M:%S %z %Y')) AS DOUBLE) AS {moment}"
        for name, moment in (("read_at", "read_moment"), ("date_added", "added_moment"))
    )
    # 0 stars is Goodreads' way to say that there is no rating.
    fields = f"""SELECT line, broken, value, user_id, item_id, NULL::VARCHAR AS position,
            CASE WHEN stars <> '0' THEN stars END AS rating, coalesce(read_at, date_added) AS time,
            CASE WHEN read_moment BETWEEN 0 AND {LATEST - 1} THEN read_moment
                 ELSE coalesce(added_moment, read_moment) END AS moment,
            coalesce({other_genre}, {drop if settings.only_read else "NULL::VARCHAR"}) AS dropped
        FROM (SELECT *, {moments} FROM (SELECT * REPLACE (present(read_at) AS read_at,
            present(date_added) AS date_added) FROM batch))"""
    names = {"user": "user_id", "item": "book_id", "time": "date_added"}
    columns = {
        "user_id": ["user_id"],
        "item_id": ["book_id"],
        "stars": ["rating"],
        "is_read": ["is_read"],
        "read_at": ["read_at"],
        "date_added": ["date_added"],
    }
    batches = json_batches(
        store.connection, interactions, columns, settings.progress, store.oddities["interactions"]
    )
    store.add_interactions(batches, fields, names)
    columns = {
        "item_id": ["book_id"],
        "title": ["title", "title_without_series"],
        "brief": ["title_without_series"],
    }
    batches = json_batches(
        store.connection, books, columns, settings.progress, store.oddities["items"]
    )
    store.add_items(batches, f"SELECT *, {other_genre} AS dropped FROM batch", "book_id")


def _load_genre(store: Store, part: Part, settings: Settings) -> None:
    """Fill the table of_genre with the ids of the genre's books."""
    sniff(part.path, {"Goodreads": [("book_id",), ("genres",)]})
    store.source("genres", part.path, KIND)
    store.connection.execute("CREATE TABLE of_genre(item_id VARCHAR)")
    genre = f'$.genres."{part.genre}"'
    for batch in line_batches(part.path, settings.progress):
        store.connection.register("batch", batch)
        store.connection.execute(
            "INSERT INTO of_genre SELECT json_extract_string(text, '$.book_id') FROM batch "
            f"WHERE CASE WHEN json_valid(text) THEN json_exists(text, '{genre}') END"
        )
        store.connection.unregister("batch")
