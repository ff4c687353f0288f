"""A finished domain's Parquet files: streamed, sorted, and the same bytes on every run."""

from collections.abc import Iterator
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from . import candidates
from .settings import Settings
from .store import Store

_ROWS = 2**16  # rows of a Parquet row group: fixed, so that the bytes are

_INTERACTIONS = pa.schema(
    [
        ("user_id", pa.string()),
        ("item_id", pa.string()),
        ("rating", pa.float64()),
        ("timestamp", pa.int64()),
        ("position", pa.int64()),
    ]
)
_ITEMS = pa.schema([("item_id", pa.string()), ("title", pa.string())])
_SPLITS = pa.schema(
    [
        ("user_id", pa.string()),
        ("item_id", pa.string()),
        ("position", pa.int64()),
        ("split", pa.string()),
    ]
)
_CANDIDATES = pa.schema(
    [
        ("user_id", pa.string()),
        ("split", pa.string()),
        ("item_id", pa.string()),
        ("negatives", pa.list_(pa.string())),
    ]
)


class EmptyDomainError(ValueError):
    """Nothing is left of a domain, or too little for its candidate lists."""


def write_domain(store: Store, folder: Path, settings: Settings, name: str) -> dict:
    """Write the four Parquet files from the tables final, final_users and final_items.

    Returns the entries of meta.json about the result. Raises EmptyDomainError if there are not
    more items than negatives.
    """
    connection = store.connection
    items = pa.concat_arrays(
        pa.array(batch.column(0).to_pylist(), pa.string())
        for batch in connection.sql("SELECT item_id FROM final_items ORDER BY i").to_arrow_reader(
            _ROWS
        )
    )
    if len(items) <= settings.negatives:
        raise EmptyDomainError(
            f"{name}, from {store.files['interactions']}: {len(items)} items are left, "
            f"expected more than negatives ({settings.negatives}) of them{store.losses()}"
        )
    ids = "FROM final JOIN final_users USING (u) JOIN final_items USING (i)"
    _write(
        connection,
        "SELECT user_id, item_id, rating, moment // 1000000 AS timestamp, "
        f"history_index AS position {ids} ORDER BY u, history_index",
        folder / "interactions.parquet",
        _INTERACTIONS,
    )
    _write(
        connection,
        "SELECT item_id, title FROM final_items ORDER BY i",
        folder / "items.parquet",
        _ITEMS,
    )
    _write(
        connection,
        "SELECT user_id, item_id, history_index AS position, CASE total - history_index "
        "WHEN 1 THEN 'test' WHEN 2 THEN 'valid' ELSE 'train' END AS split "
        f"{ids} ORDER BY u, history_index",
        folder / "splits.parquet",
        _SPLITS,
    )
    short = _write_candidates(connection, items, folder / "candidates.parquet", settings)
    users, interactions, median, longest = store.fetch_row(
        "SELECT count(*), sum(total)::BIGINT, median(total), max(total) FROM final "
        "WHERE history_index = 0"
    )
    steps, decided = store.fetch_row(
        "SELECT count(*) FILTER (WHERE tied), count(DISTINCT u) FILTER (WHERE tied AND "
        "total - history_index <= 2) FROM final"
    )
    return {
        "seed": settings.seed,
        "ties": {"steps": steps, "users_with_a_tied_split": decided},
        "result": {
            "users": users,
            "items": len(items),
            "interactions": interactions,
            "density": interactions / (users * len(items)),
            "median_history": median,
            "longest_history": longest,
            "users_with_fewer_negatives": short,
        },
    }


def _write(
    connection: duckdb.DuckDBPyConnection, query: str, path: Path, schema: pa.Schema
) -> None:
    """The query's rows as Parquet in row groups of equal size."""
    with pq.ParquetWriter(path, schema) as writer:
        pending: list[pa.RecordBatch] = []
        for batch in connection.sql(query).to_arrow_reader(_ROWS):
            pending.append(batch)
            if sum(b.num_rows for b in pending) >= _ROWS:
                table = pa.Table.from_batches(pending).cast(schema)
                writer.write_table(table.slice(0, _ROWS), row_group_size=_ROWS)
                pending = table.slice(_ROWS).to_batches()
        if pending:
            table = pa.Table.from_batches(pending).cast(schema)
            writer.write_table(table, row_group_size=_ROWS)


def _histories(connection: duckdb.DuckDBPyConnection) -> Iterator[tuple[int, np.ndarray]]:
    """(user number, item numbers in order) for every user, from a stream of sorted rows."""
    carried = np.empty((2, 0), dtype=np.int64)
    query = "SELECT u, i FROM final ORDER BY u, history_index"
    for batch in connection.sql(query).to_arrow_reader(_ROWS):
        rows = np.stack([batch.column(0).to_numpy(), batch.column(1).to_numpy()])
        rows = np.concatenate([carried, rows], axis=1)
        starts = np.flatnonzero(np.diff(rows[0])) + 1
        for user in np.split(rows, starts, axis=1)[:-1]:
            yield int(user[0, 0]), user[1]
        carried = rows[:, starts[-1] if len(starts) else 0 :]
    if carried.shape[1]:
        yield int(carried[0, 0]), carried[1]


def _write_candidates(
    connection: duckdb.DuckDBPyConnection, items: pa.Array, path: Path, settings: Settings
) -> int:
    """Write the lists; return the number of users who have seen too much for full ones."""
    user_ids = connection.cursor().execute("SELECT user_id FROM final_users ORDER BY u")
    lists = candidates.user_lists(
        _histories(connection.cursor()), len(items), settings.negatives, settings.seed
    )
    short = 0
    rows: list[tuple[str, str, int, np.ndarray]] = []
    with pq.ParquetWriter(path, _CANDIDATES) as writer:

        def flush() -> None:
            if not rows:
                return
            users, splits, positives, drawn = zip(*rows, strict=True)
            offsets = np.concatenate([[0], np.cumsum([len(d) for d in drawn])]).astype(np.int32)
            negatives = pa.ListArray.from_arrays(
                offsets, items.take(pa.array(np.concatenate(drawn)))
            )
            columns = [
                pa.array(users),
                pa.array(splits),
                items.take(pa.array(positives)),
                negatives,
            ]
            writer.write_table(pa.Table.from_arrays(columns, schema=_CANDIDATES))
            rows.clear()

        for (user_id,), (_, history, valid, test) in zip(
            iter(user_ids.fetchone, None), lists, strict=True
        ):
            rows.append((user_id, "valid", history[-2], valid))
            rows.append((user_id, "test", history[-1], test))
            short += len(test) < settings.negatives
            if len(rows) >= 2**13:
                flush()
        flush()
    return short
