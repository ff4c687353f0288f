"""JSON lines as batches of the fields that are read; the line is rejected only for these.

DuckDB reads the lines that the JSON standard allows. The others go through `record`, which also
takes what Python writes as JSON (NaN), half a surrogate pair, bytes that are no UTF-8 in a field
that nobody reads, 2014's Python dicts (with bare nan, true and null too), and the lines of an array
written one object per line. Of what is nested too deep for Python's parsers the inner part is let
be.
Of a key that stands twice in a line the last counts, as in Python's and most other readers.
"""

import ast
import json
import re
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from .missing import BLANK
from .reading import NOT_TEXT, TOO_LONG, FormatError, line_batches

SNIFFED = 100  # non-empty lines looked at before a file is said to be of another format
_LITERAL = 2**20  # characters of a Python dict that are parsed
_SURROGATE = re.compile("[\ud800-\udfff]")
_UNDECODED = re.compile("[\udc80-\udcff]")
_STRING = r"""("[^"\\]*(?:\\.[^"\\]*)*"|'[^'\\]*(?:\\.[^'\\]*)*')"""
_BRACKET = re.compile(_STRING + r"|[\[{(\]})]", re.DOTALL)
_WORD = re.compile(_STRING + r"|-?\b(?:nan|NaN|inf|Infinity|null|true|false)\b|\d_\d", re.DOTALL)
_PYTHON = {"true": "True", "false": "False", "null": "None"}  # and None for what is no number
TEXTS = ("user_id", "item_id", "title", "brief")  # columns that no list or object can fill
Fields = dict[str, list[str]]  # column -> the keys to take it from, the first that is present


def record(text: str) -> tuple[dict[str, Any] | None, str | None]:
    """The object that a line holds, and what its writer did other than JSON asks; or None, None.

    text: the line, undecodable bytes as surrogates. Numbers come as they are written.
    """
    bare = text.strip(BLANK + "\ufeff")
    oddity = None
    if bare.startswith("[{"):
        bare, oddity = bare[1:], "line of a JSON array"
    if bare.endswith((",", "}]")):
        bare, oddity = bare[:-1].rstrip(BLANK), "line of a JSON array"
    if not bare.startswith("{"):
        return None, None
    twice: list[str] = []

    def pairs(members: list[tuple[str, Any]]) -> dict[str, Any]:
        held = dict(members)
        if len(held) < len(members):
            twice.extend(key for key, count in Counter(k for k, _ in members).items() if count > 1)
        return held

    def load(written: str) -> Any:
        # What stands twice in an inner object counts too; it costs nothing.
        return json.loads(written, parse_float=str, parse_int=str, object_pairs_hook=pairs)

    try:
        try:
            value = load(bare)
        except RecursionError:
            value = load(_shallow(bare))
    except ValueError:
        value, oddity = _literal(bare), "Python dict"
    if not isinstance(value, dict):
        return None, None
    return value, "key twice" if twice else oddity


def _literal(text: str) -> Any:
    """The value of a Python literal, also with bare nan or true in it; None if it is none."""
    if len(text) > _LITERAL:
        return None
    python = _WORD.sub(_python, _SURROGATE.sub("\ufffd", text))
    if python == text and "'" not in text:  # JSON that is broken
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # escapes that Python will not take for ever
        for written in (python, _shallow(python)):
            try:
                return ast.literal_eval(written)
            except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
                continue
    return None


def _python(token: re.Match[str]) -> str:
    if token[1]:
        return token[0]
    # Digits with an underline are a number to Python alone; this way they are none.
    return "?" if "_" in token[0] else _PYTHON.get(token[0], "None")


def _shallow(text: str) -> str:
    """The text of an object with nothing in the objects and lists that its fields hold."""
    pieces: list[str] = []
    depth = start = 0
    for token in _BRACKET.finditer(text):
        if token[0] in "[{(":
            depth += 1
            if depth == 2:
                pieces.append(text[start : token.end()])
        elif token[0] in "]})":
            if depth == 2:
                start = token.start()
            depth -= 1
    return "".join(pieces) + text[start:] if depth == 0 else ""


def sniff(path: Path, formats: dict[str, list[tuple[str, ...]]]) -> str:
    """The format whose fields most of the file's first lines carry.

    formats: name -> the fields that a line must have, each a tuple of accepted names.
    Raises FormatError if none of the first 100 non-empty lines fits any format.
    """
    votes: Counter[str] = Counter()
    non_empty, first = 0, None
    for number, line in _first_lines(path):
        non_empty += 1
        first = first or (number, line)
        held, _ = record(line)
        for name, fields in formats.items():
            if held and all(any(key in held for key in keys) for keys in fields):
                votes[name] += 1
    expected = " or ".join(
        f"{', '.join('/'.join(keys) for keys in fields)} ({name})"
        for name, fields in formats.items()
    )
    if first is None:
        raise FormatError(f"{path}: the file is empty; expected JSON lines with {expected}")
    if not votes:
        start = first[1][:60].encode("utf-8", "replace").decode().strip()
        raise FormatError(
            f"{path}: line {first[0]} and the {non_empty - 1} after it: expected one JSON object "
            f"per line with the fields {expected}, found {start!r}{_hint(first[1])}"
        )
    return max(formats, key=lambda name: votes[name])


def _first_lines(path: Path) -> Iterator[tuple[int, str]]:
    """The first SNIFFED non-empty lines with their numbers."""
    count = 0
    for batch in line_batches(path, block=2**16):
        for number, text, raw in zip(
            *(column.to_pylist() for column in batch.columns), strict=True
        ):
            text = text if raw is None else raw.decode("utf-8", "surrogateescape")
            if text.strip(BLANK):
                count += 1
                yield number, text
                if count == SNIFFED:
                    return


def _hint(line: str) -> str:
    start = line.strip(BLANK)[:2]
    if start in ("[", "[{"):
        return "; a JSON array: write its objects one per line"
    if line.strip(BLANK).startswith(("{'", "{u'")):
        return "; a Python dict whose values are no literals: write JSON with json.dumps"
    if start == "{":
        return "; an object over several lines: write it on one"
    return ""


def json_batches(
    connection: duckdb.DuckDBPyConnection,
    path: Path,
    fields: Fields,
    progress: bool = False,
    oddities: Counter[str] | None = None,
) -> Iterator[pa.Table]:
    """Batches of `line`, `broken` (a reason or null), `value` (of a broken line) and the fields.

    The fields are text, or null where absent. Lists and objects are no text: such a line is broken,
    as one with bytes that are no UTF-8 in a field. oddities: counts lines that are read though they
    are not as the standard asks.
    """
    oddities = Counter() if oddities is None else oddities
    query = _query(fields)
    for batch in line_batches(path, progress):
        connection.register("lines", batch)
        table = connection.sql(query).to_arrow_table()
        connection.unregister("lines")
        columns = ["line", "broken", "value", *fields]
        lines = pa.concat_arrays(
            [
                table.filter(table["odd"])["line"].combine_chunks(),
                _repeats(connection, batch, table, fields),
            ]
        )
        if not len(lines):
            yield table.select(columns)
            continue
        yield table.filter(pc.invert(pc.is_in(table["line"], lines))).select(columns)
        odd = pc.subtract(pc.unique(lines), batch["line"][0])
        read = [
            _mended(number, text, raw, fields, oddities)
            for number, text, raw in zip(
                *(column.take(odd).to_pylist() for column in batch.columns), strict=True
            )
        ]
        types = [("line", pa.int64()), *((name, pa.string()) for name in columns[1:])]
        yield pa.Table.from_pylist(read, pa.schema(types))


def _query(fields: Fields) -> str:
    keys = [key for names in fields.values() for key in names]
    paths = ", ".join("'$.\"" + key + "\"'" for key in keys)
    number, columns, nested = 0, [], []
    for column, names in fields.items():
        values = [f"f[{number + n}]" for n in range(1, len(names) + 1)]
        number += len(names)
        several = f"coalesce({', '.join(f'present({value})' for value in values)})"
        columns.append(f"{several if len(names) > 1 else values[0]} AS {column}")
        if column in TEXTS:  # what begins like a list or an object may be one
            nested += [f"starts_with({value}, '{start}')" for value in values for start in "[{"]
    # Extraction fails on an invalid line, so it sits behind the check.
    return f"""SELECT line, CASE WHEN blank THEN 'empty line' END AS broken,
            CASE WHEN blank THEN '' END AS value, {", ".join(columns)},
            NOT blank AND (f IS NULL OR coalesce({" OR ".join(nested)}, false)) AS odd
        FROM (SELECT line, NOT regexp_matches(text, '[^{BLANK}]') AS blank,
            CASE WHEN json_valid(text) THEN
                CASE WHEN json_type(text) = 'OBJECT'
                    THEN json_extract_string(text, [{paths}]) END END AS f FROM lines)"""


def _repeats(
    connection: duckdb.DuckDBPyConnection, batch: pa.Table, table: pa.Table, fields: Fields
) -> pa.Int64Array:
    """The lines of a batch, read into `table`, that hold one of the keys twice at the top level."""
    likely = np.zeros(batch.num_rows, dtype=bool)
    (text,) = batch["text"].chunks
    data = text.buffers()[2].to_pybytes()
    keys = [key for names in fields.values() for key in names]
    for column, names in fields.items():
        values = len(table) - table[column].null_count
        # As many keys as values: each stands once. Counting line by line takes its time.
        if len(names) > 1 or data.count(f'"{names[0]}"'.encode()) != values:
            for key in names:
                likely |= pc.greater(pc.count_substring(text, f'"{key}"'), 1).to_numpy(False)
    if not likely.any():
        return pa.array([], pa.int64())
    connection.register("likely", batch.filter(pa.array(likely)))
    listed = ", ".join(f"'{key}'" for key in keys)
    lines = connection.execute(f"""SELECT line FROM (SELECT line, list_filter(
            CASE WHEN json_valid(text) THEN CASE WHEN json_type(text) = 'OBJECT'
                THEN json_keys(text) END END, lambda key: key IN ({listed})) AS held FROM likely)
        WHERE len(held) > len(list_distinct(held))""").fetchall()
    connection.unregister("likely")
    return pa.array([line for (line,) in lines], pa.int64())


def _mended(
    number: int, text: str, raw: bytes | None, fields: Fields, oddities: Counter[str]
) -> dict[str, Any]:
    """One row for a line that DuckDB does not read, or not as it is meant."""
    row: dict[str, Any] = {"line": number, "broken": "broken line"}
    text = text if raw is None else raw.decode("utf-8", "surrogateescape")
    row["value"] = text[:80].encode("utf-8", "backslashreplace").decode().strip(BLANK)
    if raw is None and text.strip(BLANK) == TOO_LONG:
        return row | {"broken": "line too long", "value": ""}
    if text.strip(BLANK) in ("[", "]", "],", NOT_TEXT):
        return row | ({"broken": "bracket of a JSON array"} if NOT_TEXT not in text else {})
    held, oddity = record(text)
    if held is None:
        return row
    values: dict[str, str | None] = {}
    for column, keys in fields.items():
        present = [held[key] for key in keys if _text(held.get(key)) is not None]
        value = present[0] if present else None
        if isinstance(value, list | dict):
            row["broken"] = f"{keys[0]} is no text"
            row["value"] = json.dumps(value)[:80]
            return row
        written = _text(value)
        if written is not None and (_UNDECODED if column == "title" else _SURROGATE).search(
            written
        ):
            return row
        values[column] = None if written is None else _SURROGATE.sub("\ufffd", written)
    if oddity is None and raw is not None:
        oddity = "bytes that are no UTF-8 in a field that is not read"
    if oddity is None and _SURROGATE.search(json.dumps(held, ensure_ascii=False)):
        oddity = "half a surrogate pair"
    if oddity:
        oddities[oddity] += 1
    return row | {"broken": None, "value": None} | values


def _text(value: Any) -> str | None:
    """A JSON value as DuckDB gives it; null and blanks are None."""
    if value is None or isinstance(value, bool):
        return None if value is None else str(value).lower()
    return str(value).strip() or None
