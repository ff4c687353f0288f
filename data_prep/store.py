"""The working tables of one domain: an on-disk DuckDB database that readers fill row by row.

A reader hands in Arrow batches and the SQL that names the fields of a row; here every row is
either kept or counted under the one reason for which it was rejected, with the first of its kind.
"""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple, Protocol

import duckdb
import pyarrow as pa

from . import missing
from .folders import is_of_disk
from .reading import FormatError
from .settings import Settings
from .times import LATEST, OUT_OF_RANGE, Times, kind_sql
from .titles import full_title, short_title

# DuckDB takes "1_000" and "inf" for numbers.
_NUMBER = (
    "CASE WHEN NOT contains({0}, '_') AND isfinite(try_cast({0} AS DOUBLE)) "
    "THEN try_cast({0} AS DOUBLE) END"
)
# ISO dates only: DuckDB reads words such as "epoch" and "infinity" as times too.
_DATE = (
    r"CASE WHEN regexp_matches({0}, '^\d{{4}}[-/]\d') "
    "THEN epoch_us(try_cast({0} AS TIMESTAMPTZ)) / 1000 END"
)


class Part(NamedTuple):
    """A domain that is a part of its files: the items of one genre of a genre file."""

    path: Path
    genre: str


class Files(NamedTuple):
    """One domain's raw files."""

    interactions: Path
    items: Path
    part: Part | None = None


class Example(NamedTuple):
    """The first line that was rejected for a reason: its number, and what was wrong in it."""

    line: int
    value: str


class Store:
    """An open database with the tables `interactions` and `items`, and the counts of both files.

    interactions(user_id, item_id, rating, moment in milliseconds UTC, number, position, line)
    items(item_id, title, brief, line): title is the full one; untitled(item_id)
    `number` is a time whose unit the whole column tells. `timed`, a view, holds the interactions
    of that unit, with moment in microseconds.
    """

    def __init__(self, folder: Path, settings: Settings, files: Files):
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
            "moment DOUBLE, number DOUBLE, position BIGINT, line BIGINT)"
        )
        run("CREATE TABLE items(item_id VARCHAR, title VARCHAR, brief VARCHAR, line BIGINT)")
        run("CREATE TABLE untitled(item_id VARCHAR)")
        missing.register(self.connection)
        for name, function in (
            ("full_title", full_title),
            ("short_title", lambda t: short_title(t, settings.title_length, settings.strip_series)),
            ("cut_title", lambda text: short_title(text, settings.title_length, False)),
        ):
            self.connection.create_function(name, function, ["VARCHAR"], "VARCHAR")
        self.settings = settings
        self.files = {"interactions": files.interactions, "items": files.items}
        self.rejected: dict[str, Counter[str]] = {"interactions": Counter(), "items": Counter()}
        self.examples: dict[str, dict[str, Example]] = {"interactions": {}, "items": {}}
        self.oddities: dict[str, Counter[str]] = {"interactions": Counter(), "items": Counter()}
        self.lines = {"interactions": 0, "items": 0}
        self.sources: list[dict] = []
        self.times = Times("time", files.interactions)
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

    def reject(self, table: str, reason: str, lines: int, line: int, value: str | None) -> None:
        """Count lines under a reason; of the first one its number and value are kept."""
        if not lines:
            return
        self.rejected[table][reason] += lines
        example = self.examples[table].get(reason)
        if example is None or line < example.line:
            self.examples[table][reason] = Example(line, (value or "")[:80])

    def add_interactions(
        self, batches: Iterable[pa.Table], fields: str, names: dict[str, str], order: bool = False
    ) -> None:
        """Sort the rows of the batches into `interactions` and reasons.

        fields: a SELECT over `batch` that gives line, broken (a reason or null), user_id, item_id,
        rating, time and position as text, moment as DOUBLE milliseconds where the reader can tell
        it from `time` (null: a number since 1970 or an ISO date), and dropped (a reason or null: a
        readable row that a setting excludes). It may give value, how a broken line begins, and use
        the macro present(x): the text, null if it is blank or a word such as nan.
        names: what the file calls user, item and time, for the reasons.
        order: a row may have a position in place of a time.
        Raises FormatError if the numbers among the times have no unit, or several.
        """
        self.times.name = names["time"]
        shaped = f"""SELECT * REPLACE (CASE WHEN time IS NOT NULL THEN coalesce(moment,
                CASE WHEN number IS NULL THEN {_DATE.format("time")} END) END AS moment),
                CASE WHEN position IS NOT NULL AND place = floor(place)
                    THEN try_cast(position AS BIGINT) END AS slot
            FROM (SELECT *, CASE WHEN moment IS NULL THEN {_NUMBER.format("time")} END AS number,
                {_NUMBER.format("position")} AS place, {_NUMBER.format("rating")} AS stars
            FROM (SELECT * REPLACE (present(user_id) AS user_id, present(item_id) AS item_id,
                present(rating) AS rating, present(time) AS time, present(position) AS position)
            FROM fields))"""
        without_time = f"missing {names['time']}"
        if order:
            without_time += " and position"
        time = names["time"]
        reasons = [
            ("broken IS NOT NULL", None, "value"),
            ("user_id IS NULL", f"missing {names['user']}", "item_id"),
            ("item_id IS NULL", f"missing {names['item']}", "user_id"),
            ("position IS NOT NULL AND slot IS NULL", "unreadable position", "position"),
            (f"time IS NULL AND {'position IS NULL' if order else 'true'}", without_time, "''"),
            (
                "time IS NOT NULL AND moment IS NULL AND number IS NULL",
                f"unreadable {time}",
                "time",
            ),
            (
                f"NOT (moment >= 0 AND moment < {LATEST}) "
                f"OR number IS NOT NULL AND {kind_sql()} IS NULL",
                OUT_OF_RANGE.format(time),
                "time",
            ),
        ]
        insert = """INSERT INTO interactions SELECT user_id, item_id,
            stars, moment, number, slot, line FROM sorted
            WHERE reason IS NULL"""
        self._add("interactions", batches, fields, shaped, reasons, [insert])
        self.times.settle()
        scale = 1000 * self.times.scale
        kept = "true"
        for reason, (condition, kinds) in self.times.misfits().items():
            (count,) = self.fetch_row(f"SELECT count(*) FROM interactions WHERE {condition}")
            examples = [self.times.first[kind] for kind in kinds if kind in self.times.first]
            self.reject("interactions", reason, count, *min(examples, default=(0, "")))
            kept += f" AND NOT coalesce({condition}, false)"
        self.connection.execute(f"""CREATE VIEW timed AS SELECT user_id, item_id, rating,
            CAST(floor(coalesce(moment * 1000, number * {scale!r})) AS BIGINT) AS moment,
            position, line FROM interactions WHERE {kept}""")

    def add_items(self, batches: Iterable[pa.Table], fields: str, item: str) -> None:
        """Likewise for items; fields gives line, broken, item_id and title (the whole) as text.

        It may give value and dropped, as above, and brief, a shorter title for prompts.
        """
        shaped = """SELECT *, full_title(title) AS full_text,
                CASE WHEN brief <> title THEN nullif(full_title(brief), '') END AS brief_text
            FROM (SELECT * REPLACE (present(item_id) AS item_id, present(title) AS title,
                present(brief) AS brief) FROM fields)"""
        reasons = [
            ("broken IS NOT NULL", None, "value"),
            ("item_id IS NULL", f"missing {item}", "title"),
            ("coalesce(full_text, '') = ''", "no title", "item_id"),
        ]
        insert = """INSERT INTO items SELECT item_id, full_text, brief_text, line FROM sorted
            WHERE reason IS NULL"""
        untitled = "INSERT INTO untitled SELECT item_id FROM sorted WHERE reason = 'no title'"
        self._add("items", batches, fields, shaped, reasons, [insert, untitled])

    def _add(
        self,
        table: str,
        batches: Iterable[pa.Table],
        fields: str,
        shaped: str,
        reasons: list[tuple[str, str | None, str]],
        inserts: list[str],
    ) -> None:
        """shaped: a SELECT over `fields`; reasons: (condition, reason or None for `broken` itself,
        the value to show), the first that holds counts."""
        run = self.connection.execute
        reason = " ".join(f"WHEN {c} THEN {'broken' if r is None else _quoted(r)}"
                          for c, r, _ in reasons)  # fmt: skip
        value = " ".join(f"WHEN {c} THEN {v}" for c, _, v in reasons)
        optional: str | None = None
        for batch in batches:
            self.connection.register("batch", batch)
            if optional is None:
                given = {row[0] for row in run(f"DESCRIBE {fields}").fetchall()}
                optional = "".join(
                    f", NULL::VARCHAR AS {name}"
                    for name in ("value", "dropped", "brief")
                    if name not in given
                )
            try:
                run(
                    f"CREATE OR REPLACE TEMP TABLE sorted AS WITH fields AS "
                    f"(SELECT *{optional} FROM ({fields})) "
                    f"SELECT *, CASE {reason} ELSE dropped END AS reason FROM ({shaped})"
                )
            except duckdb.Error as error:
                if is_of_disk(error):
                    raise
                raise FormatError(
                    f"{self.files[table]}: lines {self.lines[table] + 1} to "
                    f"{self.lines[table] + batch.num_rows} cannot be read "
                    f"({str(error).splitlines()[0]})"
                ) from None
            self.connection.unregister("batch")
            self.lines[table] += batch.num_rows
            for row in run(
                f"SELECT reason, count(*), min(line), arg_min(value, line) FROM (SELECT reason, "
                f"line, CASE {value} ELSE item_id END AS value FROM sorted "
                "WHERE reason IS NOT NULL) GROUP BY 1"
            ).fetchall():
                self.reject(table, *row)
            if table == "interactions":
                self._note_ratings()
                self.times.note(self.connection)
            for insert in inserts:
                run(insert)
        run("DROP TABLE IF EXISTS sorted")

    def _note_ratings(self) -> None:
        """Count the ratings of accepted rows that are no number: nothing uses them, so they become
        null and cost no line."""
        (unreadable,) = self.fetch_row(
            "SELECT count(*) FROM sorted WHERE reason IS NULL AND rating IS NOT NULL "
            "AND stars IS NULL"
        )
        if unreadable:
            self.oddities["interactions"]["unreadable rating"] += unreadable

    def why(self, table: str) -> str:
        """A table's rejections in one clause: counts by reason, the first line of each."""
        clauses = []
        for reason, count in self.rejected[table].most_common():
            line, value = self.examples[table][reason]
            clause = f"{count} {reason} (first: line {line}" + (f", {value!r})" if value else ")")
            if reason == f"unreadable {self.times.name}" and any(map(str.isdigit, value)):
                clause += ": expected a number since 1970 or a date; write dates as 2014-12-31"
            clauses.append(clause)
        return ", ".join(clauses)

    def losses(self) -> str:
        """What the files have lost before, for an error that says that too little is left."""
        return "".join(
            f"; {path}: {self.rejected[table].total()} of {self.lines[table]} lines were "
            f"rejected: {self.why(table)}"
            for table, path in self.files.items()
            if self.rejected[table]
        )


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


class RawFormat(Protocol):
    """What a reader module offers."""

    __name__: str  # the module's, e.g. "data_prep.plain"
    KIND: str  # the format's name in Settings.kind

    def find(self, folder: Path, domains: list[str] | None = None) -> dict[str, Files]:
        """Domain -> its files, sorted by domain; files of other domains than `domains` are let be.

        Raises FileNotFoundError if there is no domain or one lacks a file, and FormatError if a
        file is there twice. A reader that lets files without their other half be has half_pairs,
        which maps their names to what is expected beside them.
        """

    def load(self, store: Store, files: Files, settings: Settings) -> None:
        """Fill the store from one domain's files; raises FormatError for a file of another form."""
