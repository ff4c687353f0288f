"""CSV and its kin as batches of the named columns: each record is a row, read or broken.

pyarrow parses what every reader agrees on: lines with the header's number of fields whose quotes,
if any, open and close around whole fields (`whole_lines`). The others pass one by one through
`Scanner`, because pyarrow and Python's csv take an open quote for the rest of the file, or a line,
without a word.
"""

import itertools
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv

from .quoting import Scanner, named_separator, split_header
from .reading import FormatError, blocks, line_ends
from .whole_lines import whole_lines

_OPEN_LINES = 1000  # lines that a quoted field may run over
_OPEN_BYTES = 2**20


def table_batches(
    path: Path,
    required: list[str],
    optional: list[str],
    progress: bool = False,
    any_of: tuple[str, ...] = (),
    oddities: Counter[str] | None = None,
) -> Iterator[pa.Table]:
    """Batches of `line` (int64, from 1, the header's), `broken`, `value` and the columns, as text.

    broken: why a row is none, else null; value: how such a row begins. Absent columns are null.
    any_of: optional columns of which at least one has to be there. Commas, tabs, semicolons or bars
    separate, whichever the header shows, or what a line `sep=;` above the header names. oddities:
    counts rows that are read though they are not as RFC 4180 asks. Raises FormatError if the file
    is empty, if columns are missing or doubled, or if one of them is no UTF-8.
    """
    columns = required + optional
    pieces = blocks(path, progress)
    first, line = next(pieces, b""), 1
    named, start = named_separator(first)
    if named:
        first, line = first[start:] or next(pieces, b""), 2
    if not any(data and not data.isspace() for data in itertools.chain([first], pieces)):
        raise FormatError(
            f"{path}: the file is empty; expected a CSV header with the columns "
            f"{', '.join(required)}"
        )
    header, separator, start = split_header(path, first, required, line, named)
    check_columns(path, header, required, optional, any_of, line)
    present = [name for name in columns if name in header]
    rows = _Rows(path, header, separator, present, Counter() if oddities is None else oddities)
    pending, line = first[start:], line + 1
    for piece in pieces:
        tables, used, lines = rows.read(pending, line, final=False)
        yield from (_completed(table, columns) for table in tables)
        pending, line = pending[used:] + piece, line + lines
    tables, _, _ = rows.read(pending, line, final=True)
    yield from (_completed(table, columns) for table in tables)


def check_columns(
    path: Path,
    names: list[str],
    required: list[str],
    optional: list[str],
    any_of: tuple[str, ...],
    line: int = 1,
) -> None:
    """Raises FormatError if a table's columns are not the expected ones, or one is there twice.

    line: where the names stand.
    """
    for name in required + optional:
        if names.count(name) > 1:
            raise FormatError(
                f"{path}: line {line}: expected one column {name}, found {names.count(name)}"
            )
    if any_of and not set(any_of) & set(names) and set(required) <= set(names):
        raise FormatError(
            f"{path}: line {line}: expected a column {' or '.join(any_of)} beside "
            f"{', '.join(required)}, found neither"
        )
    missing = [name for name in required if name not in names]
    if missing:
        present = ", ".join(names)[:80] or "nothing"
        raise FormatError(
            f"{path}: line {line}: expected the columns {', '.join(required)}, "
            f"{', '.join(missing)} is missing (found {present})"
        )


def _completed(table: pa.Table, columns: list[str]) -> pa.Table:
    for name in ("broken", "value", *columns):
        if name not in table.column_names:
            table = table.append_column(name, pa.nulls(table.num_rows, pa.string()))
    return table.select(["line", "broken", "value", *columns])


class _Rows:
    """The records of a piece of a table, for its header and separator."""

    def __init__(
        self,
        path: Path,
        header: list[str],
        separator: str,
        included: list[str],
        oddities: Counter[str],
    ):
        self.path, self.width, self.separator = path, len(header), separator
        self.included, self.oddities = included, oddities
        self.places = [header.index(name) for name in included]

    def read(self, data: bytes, line: int, final: bool) -> tuple[list[pa.Table], int, int]:
        """(tables of the rows, bytes used, lines used); `line` is the number of the first line.

        What is left is the start of a record that runs into the next piece.
        """
        if not data:
            return [], 0, 0
        ends = line_ends(data)
        starts = np.concatenate([[0], ends[:-1]])
        whole = whole_lines(data, ends, self.separator, self.width)
        scanner = Scanner(
            data, starts, ends, self.separator, self.width, self.places, self.oddities
        )
        rows: list[dict] = []
        count, place = len(ends), 0
        for odd in np.flatnonzero(~whole).tolist():
            if odd < place:  # within a record before it
                continue
            stop = min(count, odd + _OPEN_LINES)
            stop = max(int(np.searchsorted(ends[:stop], ends[odd] + _OPEN_BYTES)), odd + 1)
            found = scanner.record(odd, stop, ended=final or stop < count)
            if found is None:
                count = odd
                break
            length, records = found
            for number, broken, value, fields in records:
                rows.append({"line": line + number, "broken": broken, "value": value}
                            | dict(zip(self.included, fields, strict=False)))  # fmt: skip
            whole[odd : odd + length] = False
            place = odd + length
        whole[count:] = False
        tables = []
        if whole.any():
            tables.append(self._parsed(data, starts, ends, whole, line))
        if rows:
            tables.append(self._listed(rows))
        return tables, int(ends[count - 1]) if count else 0, count

    def _parsed(
        self, data: bytes, starts: np.ndarray, ends: np.ndarray, whole: np.ndarray, line: int
    ) -> pa.Table:
        numbers = np.flatnonzero(whole) + line
        if not whole.all():
            keep = np.repeat(whole, ends - starts)
            data = np.frombuffer(data, np.uint8)[: len(keep)][keep].tobytes()
        names = [str(place) for place in range(self.width)]
        chosen = [str(place) for place in self.places]
        try:
            table = pa_csv.read_csv(
                pa.BufferReader(data),
                read_options=pa_csv.ReadOptions(
                    use_threads=False, block_size=len(data) + 1, column_names=names
                ),
                parse_options=pa_csv.ParseOptions(
                    delimiter=self.separator, ignore_empty_lines=False
                ),
                convert_options=pa_csv.ConvertOptions(
                    column_types={name: pa.string() for name in chosen},
                    include_columns=chosen,
                    strings_can_be_null=True,
                    null_values=[""],
                    quoted_strings_can_be_null=True,
                ),
            )
        except pa.ArrowInvalid as error:
            raise self._no_text(data, numbers, str(error)) from None
        assert table.num_rows == len(numbers)
        return table.rename_columns(self.included).append_column("line", pa.array(numbers))

    def _no_text(self, data: bytes, numbers: np.ndarray, reason: str) -> FormatError:
        """The error for the first of the lines that is not UTF-8."""
        ends = line_ends(data)
        for number, start, end in zip(numbers, [0, *ends[:-1]], ends, strict=False):
            try:
                data[start:end].decode("utf-8")
            except UnicodeDecodeError:
                return self._encoding(int(number), data[start:end])
        return FormatError(f"{self.path}: line {numbers[0]} and after it: {reason.split('. ')[0]}")

    def _encoding(self, number: int, line: bytes) -> FormatError:
        return FormatError(
            f"{self.path}: expected a UTF-8 CSV file with the columns {', '.join(self.included)}; "
            f"line {number} is in another encoding: {line[:60]!r}"
        )

    def _listed(self, rows: list[dict]) -> pa.Table:
        types = [("line", pa.int64()), ("broken", pa.string()), ("value", pa.string())]
        types += [(name, pa.string()) for name in self.included]
        try:
            return pa.Table.from_pylist(rows, pa.schema(types))
        except UnicodeEncodeError:
            for row in rows:
                for name in self.included:
                    text = (row.get(name) or "").encode("utf-8", "surrogateescape")
                    if text != text.decode("utf-8", "replace").encode():
                        raise self._encoding(row["line"], text) from None
            raise
