"""The working tables of one domain: an on-disk DuckDB database that readers fill row by row.

A reader hands in Arrow batches and the SQL that names the fields of a row; here every row is
either kept or counted under the one reason for which it was rejected.
"""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

import duckdb
import pyarrow as pa

from .settings import Settings
from .titles import clean_title

Files = tuple[Path, Path]  # one domain's interactions file and items file
LATEST = 4_102_444_800_000  # 2100-01-01 in milliseconds: later times are errors


class Store:
    """An open database with the tables `interactions` and `items`, and the counts of both files.

    interactions(user_id, item_id, rating, moment in milliseconds UTC, position, line)
    items(item_id, title, line), titles cleaned; untitled(item_id)
    """

    def __init__(self, folder: Path, settings: Settings):
        self.connection = duckdb.connect(str(folder / "work.duckdb"))
        run = self.connection.execute
        run(f"SET memory_limit = '{settings.memory}'")
        run("SET temp_directory = '" + str(folder / "spill").replace("'", "''") + "'")
        run("SET TimeZone = 'UTC'")
        run("SET enable_progress_bar = false")
        if settings.threads:
            run(f"SET threads = {settings.threads}")
        run(
            "CREATE TABLE interactions(user_id VARCHAR, item_id VARCHAR, rating DOUBLE, "
            "moment BIGINT, position BIGINT, line BIGINT)"
        )
        run("CREATE TABLE items(item_id VARCHAR, title VARCHAR, line BIGINT)")
        run("CREATE TABLE untitled(item_id VARCHAR)")
        self.connection.create_function(
            "clean_title",
            lambda text: clean_title(text, settings.title_length, settings.strip_series),
            ["VARCHAR"],
            "VARCHAR",
        )
        self.settings = settings
        self.rejected: dict[str, Counter[str]] = {"interactions": Counter(), "items": Counter()}
        self.lines = {"interactions": 0, "items": 0}
        self.sources: list[dict] = []
        self.order = ""  # the SQL order of a user's rows, known once all rows are in

    def close(self) -> None:
        self.connection.close()

    def fetch_row(self, query: str) -> tuple:
        """The first row of a query that has one."""
        row = self.connection.execute(query).fetchone()
        assert row is not None
        return row

    def source(self, role: str, path: Path, file_format: str) -> None:
        """Note a source file for meta.json: its name and size, not its folder."""
        self.sources.append(
            {"role": role, "name": path.name, "bytes": path.stat().st_size, "format": file_format}
        )

    def add_interactions(
        self, batches: Iterable[pa.Table], fields: str, names: dict[str, str], order: bool = False
    ) -> None:
        """Sort the rows of the batches into `interactions` and reasons.

        fields: a SELECT over `batch` that gives line, broken (a reason or null), user_id,
        item_id, rating and time as text, moment as DOUBLE milliseconds, position as text, and
        dropped (a reason or null: a readable row that a setting excludes).
        names: what the file calls user, item and time, for the reasons.
        order: a row may have a position in place of a time.
        """
        without_time = f"missing {names['time']}"
        if order:
            without_time += " and position"
        position = "nullif(trim(position), '') IS NULL" if order else "true"
        reasons = f"""CASE
            WHEN broken IS NOT NULL THEN broken
            WHEN user_id IS NULL OR trim(user_id) = '' THEN 'missing {names["user"]}'
            WHEN item_id IS NULL OR trim(item_id) = '' THEN 'missing {names["item"]}'
            WHEN nullif(trim(position), '') IS NOT NULL AND try_cast(position AS BIGINT) IS NULL
                THEN 'unreadable position'
            WHEN nullif(trim(time), '') IS NULL AND {position} THEN '{without_time}'
            WHEN nullif(trim(time), '') IS NOT NULL AND moment IS NULL
                THEN 'unreadable {names["time"]}'
            WHEN moment IS NOT NULL AND NOT (moment >= 0 AND moment < {LATEST})
                THEN '{names["time"]} out of range (before 1970 or after 2099)'
            WHEN nullif(trim(rating), '') IS NOT NULL AND NOT coalesce(
                isfinite(try_cast(rating AS DOUBLE)), false) THEN 'unreadable rating'
            ELSE dropped END"""
        insert = """INSERT INTO interactions SELECT trim(user_id), trim(item_id),
            try_cast(rating AS DOUBLE), CAST(floor(moment) AS BIGINT),
            try_cast(position AS BIGINT), line FROM sorted WHERE reason IS NULL"""
        self._add("interactions", batches, fields, reasons, [insert])

    def add_items(self, batches: Iterable[pa.Table], fields: str, item: str) -> None:
        """Likewise for items; fields gives line, broken, item_id and title as text."""
        reasons = f"""CASE
            WHEN broken IS NOT NULL THEN broken
            WHEN item_id IS NULL OR trim(item_id) = '' THEN 'missing {item}'
            WHEN coalesce(clean, '') = '' THEN 'no title' END"""
        fields = f"SELECT *, clean_title(title) AS clean FROM ({fields})"
        insert = """INSERT INTO items SELECT trim(item_id), clean, line FROM sorted
            WHERE reason IS NULL"""
        untitled = """INSERT INTO untitled SELECT trim(item_id) FROM sorted
            WHERE reason = 'no title'"""
        self._add("items", batches, fields, reasons, [insert, untitled])

    def _add(
        self,
        table: str,
        batches: Iterable[pa.Table],
        fields: str,
        reasons: str,
        inserts: list[str],
    ) -> None:
        run = self.connection.execute
        for batch in batches:
            self.connection.register("batch", batch)
            run(f"CREATE OR REPLACE TEMP TABLE sorted AS SELECT *, {reasons} AS reason "
                f"FROM ({fields})")  # fmt: skip
            self.connection.unregister("batch")
            self.lines[table] += batch.num_rows
            rows = run("SELECT reason, count(*) FROM sorted WHERE reason IS NOT NULL GROUP BY 1")
            self.rejected[table].update(dict(rows.fetchall()))
            for insert in inserts:
                run(insert)
        run("DROP TABLE IF EXISTS sorted")


class RawFormat(Protocol):
    """What a reader module offers."""

    __name__: str  # the module's, e.g. "data_prep.plain"
    KIND: str  # the format's name in Settings.kind

    def find(self, folder: Path) -> dict[str, Files]:
        """Domain -> its two files, sorted by domain.

        Raises FileNotFoundError if there is no domain or one lacks a file, and FormatError if a
        file is there twice.
        """

    def load(self, store: Store, files: Files, settings: Settings) -> None:
        """Fill the store from one domain's files; raises FormatError for a file of another form."""


def json_fields(fields: dict[str, list[str]]) -> str:
    """A SELECT over a batch of lines: line, broken, and each named field as text.

    fields: column -> the field names to take it from, the first that is present counts.
    """
    sources = [name for names in fields.values() for name in names]
    paths = ", ".join(f"'$.{name}'" for name in sources)
    columns = ", ".join(
        "coalesce("
        + ", ".join(f"nullif(trim(f[{sources.index(name) + 1}]), '')" for name in names)
        + f", NULL) AS {column}"
        for column, names in fields.items()
    )
    # Extraction fails on an invalid line, so it sits behind the check.
    return f"""SELECT line, CASE WHEN blank THEN 'empty line'
            WHEN f IS NULL THEN 'broken line' END AS broken, {columns}
        FROM (SELECT line, trim(text, ' \t\r\n') = '' AS blank,
            CASE WHEN json_valid(text) THEN
                CASE WHEN json_type(text) = 'OBJECT'
                    THEN json_extract_string(text, [{paths}]) END END AS f FROM batch)"""
