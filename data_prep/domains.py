"""From filled tables to a prepared domain: join, filter, order; export.py writes the files.

Everything that grows with the number of interactions stays in DuckDB (on disk beyond its memory
limit) or passes in batches; numbers stand for the ids as soon as the rows are in.
"""

import json
from pathlib import Path

import duckdb
from tqdm import tqdm

from .catalogue import join_items
from .export import EmptyDomainError, write_domain
from .folders import is_of_disk, remove
from .reading import FormatError
from .settings import Settings
from .store import Files, RawFormat, Store

FORMAT_VERSION = 2


def prepare_domain(
    dataset: str, domain: str, reader: RawFormat, files: Files, folder: Path, settings: Settings
) -> dict:
    """Write one domain's files into `folder`, a new one, and return its meta.json as a dict.

    files: the domain's raw files, as the reader finds them.
    Raises FormatError for a file of another format, EmptyDomainError if the filter leaves nothing
    or fewer items than a candidate list needs, FileNotFoundError for a missing file, and what disk
    and memory refuse as DuckDB and the system say it.
    """
    work = folder / "work"
    work.mkdir(parents=True)
    store = None
    try:
        store = Store(work, settings, files)
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
            meta |= _join(store)
            steps.update()
            meta |= _filter(store, settings, f"{dataset}/{domain}")
            steps.update()
            _number(store, settings)
            steps.update()
            meta |= write_domain(store, folder, settings, f"{dataset}/{domain}")
            steps.update()
    except duckdb.Error as error:
        if is_of_disk(error):
            raise
        raise FormatError(
            f"{files.interactions} with {files.items.name} cannot be prepared "
            f"({str(error).splitlines()[0]})"
        ) from error
    finally:
        if store is not None:
            store.close()
    remove(work)
    text = json.dumps(meta, indent=2, ensure_ascii=False) + "\n"
    (folder / "meta.json").write_text(text, encoding="utf-8")
    return meta


def _join(store: Store) -> dict:
    """Merge items by title, drop interactions without an item, collapse duplicates."""
    run, fetch_row = store.connection.execute, store.fetch_row
    for name, table in (("interactions", "timed"), ("items", "items")):
        if not fetch_row(f"SELECT count(*) FROM {table}")[0]:
            why = f" ({store.why(name)})" if store.rejected[name] else ""
            raise FormatError(
                f"{store.files[name]}: expected {name}, none of its {store.lines[name]} lines is "
                f"usable{why}"
            )
    items = join_items(store)

    has_item = "item_id IN (SELECT item_id FROM item_numbers)"
    for reason, condition in (
        ("item without title", "item_id IN (SELECT item_id FROM untitled)"),
        ("item not in the items file", "item_id NOT IN (SELECT item_id FROM untitled)"),
    ):
        row = fetch_row(
            "SELECT count(*), min(line), arg_min(item_id, line) FROM timed "
            f"WHERE NOT {has_item} AND {condition}"
        )
        store.reject("interactions", reason, *row)
    total, no_moment, no_position = fetch_row(
        "SELECT count(*), count(*) FILTER (WHERE moment IS NULL), "
        f"count(*) FILTER (WHERE position IS NULL) FROM timed WHERE {has_item}"
    )
    path = store.files["interactions"]
    if not total:
        item, line = fetch_row("SELECT item_id, line FROM items ORDER BY line LIMIT 1")
        other, other_line = fetch_row("SELECT item_id, line FROM timed ORDER BY line LIMIT 1")
        raise FormatError(
            f"{path}: expected items of {store.files['items'].name}, none of its rows has one: "
            f"it has {other!r} (line {other_line}), the items {item!r} (line {line}); "
            f"{store.why('interactions')}"
        )
    if no_moment and no_position:
        lines = fetch_row(
            "SELECT min(line) FILTER (WHERE moment IS NULL), "
            f"min(line) FILTER (WHERE position IS NULL) FROM timed WHERE {has_item}"
        )
        raise FormatError(
            f"{path}: expected a timestamp in every row or a position in every row, "
            f"{no_moment} rows lack the one and {no_position} the other "
            f"(first: line {lines[0]}, line {lines[1]})"
        )
    store.order = "position" if no_moment else "moment, position"

    run(f"""CREATE TABLE users AS SELECT user_id, row_number() OVER (ORDER BY user_id) AS person
        FROM (SELECT DISTINCT user_id FROM timed WHERE {has_item})""")
    run(f"""CREATE TABLE events AS SELECT person, item, rating, moment, position
        FROM timed JOIN users USING (user_id) JOIN item_numbers USING (item_id)
        QUALIFY row_number() OVER (PARTITION BY person, item ORDER BY {store.order}, line) = 1""")
    run("DROP VIEW timed")
    run("DROP TABLE interactions")
    events = fetch_row("SELECT count(*) FROM events")[0]
    titles = {key: items.pop(key) for key in ("with_series", "uncut")}
    return {
        "order": "position" if no_moment else "timestamp",
        "time": {
            "field": store.times.name,
            "unit": store.times.unit,
            "numbers": sum(store.times.groups.values()),
            "dates": store.times.dates,
        },
        "interactions": {
            "lines": store.lines["interactions"],
            "rejected": _sorted(store, "interactions"),
            "accepted": total,
            "duplicates": total - events,
        },
        "items": {
            "lines": store.lines["items"],
            "rejected": _sorted(store, "items"),
        }
        | items,
        "titles": titles,
        "examples": {
            name: {
                reason: {"file": store.files[name].name, **example._asdict()}
                for reason, example in sorted(examples.items())
            }
            for name, examples in store.examples.items()
        },
        "oddities": {name: dict(sorted(odd.items())) for name, odd in store.oddities.items()},
    }


def _sorted(store: Store, table: str) -> dict[str, int]:
    return dict(sorted(store.rejected[table].items()))


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
            f"{name}, from {store.files['interactions']}: the core filter (user_core "
            f"{settings.user_core}, item_core {settings.item_core}) leaves none of "
            f"{steps[0]['users']} users, {steps[0]['items']} items and "
            f"{steps[0]['interactions']} interactions; lower it" + store.losses()
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


_PRIME = 2**31 - 1


def _key(name: str, settings: Settings) -> str:
    """SQL: a number from 1 to _PRIME - 1 for an id; products of two modulo _PRIME are hashes."""
    text = f"concat_ws(':', {settings.seed}, '{name}', {name}_id)"
    return f"(1 + md5_number_lower({text}) % {_PRIME - 1})::BIGINT"


def _number(store: Store, settings: Settings) -> None:
    """Order each user's rows; number the users and items that are left by their sorted ids.

    What neither time nor position orders, a hash of seed, user and item does: the line in a file
    would let the order of its items decide.
    """
    run = store.connection.execute
    run(f"""CREATE TABLE final_users AS SELECT user_id, person, {_key("user", settings)}
        AS user_key, row_number() OVER (ORDER BY user_id) - 1 AS u
        FROM users SEMI JOIN live_users USING (person)""")
    run(f"""CREATE TABLE final_items AS SELECT item_id, title, item, {_key("item", settings)}
        AS item_key,
        row_number() OVER (ORDER BY item_id) - 1 AS i
        FROM heads SEMI JOIN live_items USING (item)""")
    same = " AND ".join(
        f"{key} IS NOT DISTINCT FROM lag({key}) OVER user_rows" for key in store.order.split(", ")
    )
    run(f"""CREATE TABLE final AS SELECT u, i, rating, moment,
        row_number() OVER user_rows - 1 AS history_index,
        row_number() OVER user_rows > 1 AND {same} AS tied,
        count(*) OVER (PARTITION BY u) AS total
        FROM (SELECT u, i, rating, moment, position,
            user_key * item_key % {_PRIME} AS tie
            FROM events JOIN final_users USING (person) JOIN final_items USING (item))
        WINDOW user_rows AS (PARTITION BY u ORDER BY {store.order}, tie, i)""")
    run("DROP TABLE events")
