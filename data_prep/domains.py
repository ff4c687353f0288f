"""From filled tables to a prepared domain: join, filter, order; export.py writes the files.

Everything that grows with the number of interactions stays in DuckDB (on disk beyond its memory
limit) or passes in batches; numbers stand for the ids as soon as the rows are in.
"""

import json
import shutil
from pathlib import Path

from tqdm import tqdm

from .export import EmptyDomainError, write_domain
from .reading import FormatError
from .settings import Settings
from .store import Files, RawFormat, Store

FORMAT_VERSION = 1


def prepare_domain(
    dataset: str, domain: str, reader: RawFormat, files: Files, out: Path, settings: Settings
) -> dict:
    """Write out/<domain>/ from one domain's raw files and return its meta.json as a dict.

    files: the domain's interactions and items, as the reader finds them. The folder is built under
    a hidden name and renamed at the end, so a stopped preparation leaves the earlier one as it was.
    Raises FormatError for a file of another format, EmptyDomainError if the filter leaves nothing
    or fewer items than a candidate list needs, FileNotFoundError for a missing file.
    """
    partial = out / f".{domain}.partial"
    _remove(partial)
    work = partial / "work"
    work.mkdir(parents=True)
    try:
        store = Store(work, settings)
        try:
            steps = tqdm(
                total=5, desc=f"{dataset}/{domain}", leave=False, disable=not settings.progress
            )
            with steps:
                reader.load(store, files, settings)
                steps.update()
                meta = {
                    "format_version": FORMAT_VERSION,
                    "dataset": dataset,
                    "domain": domain,
                    "settings": settings.recorded(),
                    "sources": store.sources,
                }
                meta |= _join(store, files)
                steps.update()
                meta |= _filter(store, settings, f"{dataset}/{domain}")
                steps.update()
                _number(store)
                steps.update()
                meta |= write_domain(store, partial, settings, f"{dataset}/{domain}")
                steps.update()
        finally:
            store.close()
        shutil.rmtree(work)
        text = json.dumps(meta, indent=2, ensure_ascii=False) + "\n"
        (partial / "meta.json").write_text(text, encoding="utf-8")
        _swap(partial, out / domain)
    finally:
        _remove(partial)
    return meta


def _join(store: Store, files: Files) -> dict:
    """Merge items by title, drop interactions without an item, collapse duplicates."""
    run, fetch_row = store.connection.execute, store.fetch_row
    rejected = {name: dict(sorted(counts.items())) for name, counts in store.rejected.items()}
    for name, path in zip(("interactions", "items"), files, strict=True):
        if not fetch_row(f"SELECT count(*) FROM {name}")[0]:
            reasons = ", ".join(f"{count} {reason}" for reason, count in rejected[name].items())
            raise FormatError(
                f"{path}: expected {name}, none of its {store.lines[name]} lines is usable"
                + (f" ({reasons})" if reasons else "")
            )

    # Items: the first line of an id counts, items with one title become the smallest of their ids.
    run(
        "CREATE TABLE titles AS SELECT item_id, arg_min(title, line) AS title FROM items GROUP BY 1"
    )
    accepted, distinct = fetch_row(
        "SELECT (SELECT count(*) FROM items), (SELECT count(*) FROM titles)"
    )
    if accepted > distinct:
        rejected["items"]["repeated item"] = accepted - distinct
    run("""CREATE TABLE merged AS SELECT item_id, title,
        min(item_id) OVER (PARTITION BY title) AS head FROM titles""")
    merged = fetch_row("SELECT count(*) FROM merged WHERE head <> item_id")[0]
    run("CREATE TABLE heads AS SELECT item_id, title, row_number() OVER (ORDER BY item_id) AS item "
        "FROM merged WHERE head = item_id")  # fmt: skip
    run("CREATE TABLE item_numbers AS SELECT merged.item_id, heads.item FROM merged "
        "JOIN heads ON heads.item_id = merged.head")  # fmt: skip

    has_item = "item_id IN (SELECT item_id FROM item_numbers)"
    untitled, unknown = fetch_row(
        f"SELECT count(*) FILTER (WHERE item_id IN (SELECT item_id FROM untitled)), "
        f"count(*) FILTER (WHERE item_id NOT IN (SELECT item_id FROM untitled)) "
        f"FROM interactions WHERE NOT {has_item}"
    )
    if untitled:
        rejected["interactions"]["item without title"] = untitled
    if unknown:
        rejected["interactions"]["item not in the items file"] = unknown
    total, no_moment, no_position = fetch_row(
        "SELECT count(*), count(*) FILTER (WHERE moment IS NULL), "
        f"count(*) FILTER (WHERE position IS NULL) FROM interactions WHERE {has_item}"
    )
    if not total:
        raise FormatError(
            f"{files[0]}: expected items of {files[1].name}, none of its rows has one"
        )
    if no_moment and no_position:
        raise FormatError(
            f"{files[0]}: expected a timestamp in every row or a position in every row, "
            f"{no_moment} rows lack the one and {no_position} the other"
        )
    order = "position, line, item" if no_moment else "moment, position, line, item"

    run(f"""CREATE TABLE users AS SELECT user_id, row_number() OVER (ORDER BY user_id) AS person
        FROM (SELECT DISTINCT user_id FROM interactions WHERE {has_item})""")
    run(f"""CREATE TABLE events AS SELECT person, item, rating, moment, position, line
        FROM interactions JOIN users USING (user_id) JOIN item_numbers USING (item_id)
        QUALIFY row_number() OVER (PARTITION BY person, item ORDER BY {order}) = 1""")
    run("DROP TABLE interactions")
    events = fetch_row("SELECT count(*) FROM events")[0]
    store.order = order
    return {
        "order": "position" if no_moment else "timestamp",
        "interactions": {
            "lines": store.lines["interactions"],
            "rejected": rejected["interactions"],
            "accepted": total,
            "duplicates": total - events,
        },
        "items": {
            "lines": store.lines["items"],
            "rejected": rejected["items"],
            "accepted": distinct,
            "merged_by_title": merged,
        },
    }


def _filter(store: Store, settings: Settings, name: str) -> dict:
    """Core filter to its fixed point; max_users, if set, between two such filters."""
    run = store.connection.execute
    steps = [_size(store, "read", "events")]
    run("CREATE TABLE live_users AS SELECT DISTINCT person FROM events")
    run("CREATE TABLE live_items AS SELECT DISTINCT item FROM events")
    rounds = _core(store, settings)
    steps.append(_size(store, "core filter", _LIVE))
    if settings.max_users is not None and steps[-1]["users"] > settings.max_users:
        run(f"""CREATE OR REPLACE TABLE live_users AS SELECT person FROM live_users
            JOIN users USING (person)
            ORDER BY md5('{settings.seed}:' || user_id), user_id LIMIT {settings.max_users}""")
        steps.append(_size(store, "max_users", _LIVE))
        rounds += _core(store, settings)
        steps.append(_size(store, "core filter after max_users", _LIVE))
    if not steps[-1]["interactions"]:
        raise EmptyDomainError(
            f"{name}: the core filter (user_core {settings.user_core}, item_core "
            f"{settings.item_core}) leaves none of {steps[0]['users']} users, "
            f"{steps[0]['items']} items and {steps[0]['interactions']} interactions; lower it"
        )
    return {"steps": steps, "filter_rounds": rounds}


_LIVE = "events SEMI JOIN live_users USING (person) SEMI JOIN live_items USING (item)"


def _size(store: Store, step: str, table: str) -> dict:
    users, items, interactions = store.fetch_row(
        f"SELECT count(DISTINCT person), count(DISTINCT item), count(*) FROM (FROM {table})"
    )
    return {"step": step, "users": users, "items": items, "interactions": interactions}


def _core(store: Store, settings: Settings) -> int:
    """Shrink live_users and live_items to the largest sets in which both minima hold.

    Only the two sets change, the events stay. Returns the passes, the last one changing nothing.
    """
    run, rounds = store.connection.execute, 0
    while True:
        rounds += 1
        before = _live(store)
        for key, table, minimum in (
            ("item", "live_items", settings.item_core),
            ("person", "live_users", settings.user_core),
        ):
            run(f"""CREATE OR REPLACE TABLE {table} AS SELECT {key} FROM (FROM {_LIVE})
                GROUP BY {key} HAVING count(*) >= {minimum}""")
        if _live(store) == before:
            return rounds


def _live(store: Store) -> tuple:
    """How many users and items are left."""
    return store.fetch_row(
        "SELECT (SELECT count(*) FROM live_users), (SELECT count(*) FROM live_items)"
    )


def _number(store: Store) -> None:
    """Order each user's rows; number the users and items that are left by their sorted ids."""
    run = store.connection.execute
    run("""CREATE TABLE final_users AS SELECT user_id, person,
        row_number() OVER (ORDER BY user_id) - 1 AS u
        FROM users SEMI JOIN live_users USING (person)""")
    run("""CREATE TABLE final_items AS SELECT item_id, title, item,
        row_number() OVER (ORDER BY item_id) - 1 AS i
        FROM heads SEMI JOIN live_items USING (item)""")
    run(f"""CREATE TABLE final AS SELECT u, i, rating, moment,
        row_number() OVER (PARTITION BY u ORDER BY {store.order}) - 1 AS history_index,
        count(*) OVER (PARTITION BY u) AS total
        FROM events JOIN final_users USING (person) JOIN final_items USING (item)""")
    run("DROP TABLE events")


def _swap(finished: Path, target: Path) -> None:
    """Rename a finished folder to `target` and remove the earlier folder of that name."""
    old = target.with_name(f".{target.name}.old")
    _remove(old)
    if target.exists():
        target.rename(old)
    finished.rename(target)
    _remove(old)


def _remove(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)
