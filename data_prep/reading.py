"""Raw files as a stream of Arrow batches, each row with its line number.

Files are read in blocks of fixed size, so memory stays bounded whatever the file's length, and a
truncated or foreign file is an error that names it. DuckDB parses the batches in parallel.
"""

import csv
import gzip
import io
import json
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
from tqdm import tqdm

BLOCK = 16 * 2**20
SNIFFED = 100  # non-empty lines looked at before a file is said to be of another format
_NOT_TEXT = b'"not UTF-8"'  # stands for an undecodable line: valid to DuckDB, no JSON object


class FormatError(ValueError):
    """A file is not what it should be: the message names file, line and what was expected."""


@contextmanager
def opened(path: Path, progress: bool = False) -> Iterator[io.RawIOBase]:
    """The file's decompressed bytes, with a bar over the compressed ones.

    Raises FileNotFoundError, and FormatError if the name ends in .gz and the content does not
    begin as gzip; reading raises FormatError where the stream is damaged or ends early.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    size = path.stat().st_size
    with (
        path.open("rb") as raw,
        tqdm(
            total=size, desc=path.name, unit="B", unit_scale=True, leave=False, disable=not progress
        ) as bar,
    ):
        packed = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        if path.suffix == ".gz" and not packed:
            raise FormatError(f"{path}: expected a gzip file, but it does not begin as one")
        stream = gzip.GzipFile(fileobj=raw) if packed else raw
        yield _ProgressStream(stream, raw, bar, path)


class _ProgressStream(io.RawIOBase):
    """A readable stream that moves a progress bar and names its file in every error."""

    def __init__(self, stream: gzip.GzipFile | IO[bytes], raw: IO[bytes], bar: tqdm, path: Path):
        self._stream, self._raw, self._bar, self._path = stream, raw, bar, path

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        try:
            block = self._stream.read(size)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise FormatError(
                f"{self._path}: the gzip stream is truncated or damaged ({error}); "
                "expected a complete file, fetch it again"
            ) from None
        self._bar.update(self._raw.tell() - self._bar.n)
        return block

    def readinto(self, target: memoryview) -> int:  # type: ignore[override]
        block = self.read(len(target))
        target[: len(block)] = block
        return len(block)


def line_batches(path: Path, progress: bool = False, block: int = BLOCK) -> Iterator[pa.Table]:
    """Batches of the columns `line` (int64, from 1) and `text` (string, with its line end)."""
    line, open_line = 1, b""  # the next line's number, the start of a line that is not all read
    with opened(path, progress) as stream:
        while True:
            data = stream.read(block) or b""
            if line == 1 and not open_line:
                data = data.removeprefix(b"\xef\xbb\xbf")
            end = data.rfind(b"\n") + 1
            if data and not end:
                open_line += data
                continue
            chunk, open_line = (open_line + data[:end], data[end:]) if data else (open_line, b"")
            if chunk:
                table = _lines(chunk, line)
                line += table.num_rows
                yield table
            if not data:
                return


def _lines(chunk: bytes, first: int) -> pa.Table:
    try:
        chunk.decode("utf-8")
    except UnicodeDecodeError:
        chunk = b"".join(map(_text_or_mark, chunk.splitlines(keepends=True)))
    buffer = np.frombuffer(chunk, dtype=np.uint8)
    ends = np.flatnonzero(buffer == ord("\n")) + 1
    if not len(ends) or ends[-1] != len(buffer):
        ends = np.append(ends, len(buffer))
    offsets = np.concatenate([[0], ends]).astype(np.int64)
    text = pa.LargeStringArray.from_buffers(
        len(ends), pa.py_buffer(offsets.tobytes()), pa.py_buffer(chunk)
    )
    return pa.table({"line": np.arange(first, first + len(ends), dtype=np.int64), "text": text})


def _text_or_mark(line: bytes) -> bytes:
    try:
        line.decode("utf-8")
    except UnicodeDecodeError:
        return _NOT_TEXT + (b"\n" if line.endswith(b"\n") else b"")
    return line


def sniff(path: Path, formats: dict[str, list[tuple[str, ...]]]) -> str:
    """The format whose fields most of the file's first lines carry.

    formats: name -> the fields that a line must have, each a tuple of accepted names.
    Raises FormatError if none of the first 100 non-empty lines fits any format.
    """
    votes: Counter[str] = Counter()
    non_empty, first = 0, None
    with opened(path) as stream:
        lines = io.BufferedReader(stream, 2**16)
        for number, line in enumerate(lines, start=1):
            line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
            if not line.strip():
                continue
            non_empty += 1
            first = first or (number, line)
            try:
                record = json.loads(line)
            except ValueError:
                record = None
            if isinstance(record, dict):
                for name, fields in formats.items():
                    if all(any(key in record for key in keys) for keys in fields):
                        votes[name] += 1
            if non_empty == SNIFFED:
                break
    expected = " or ".join(
        f"{', '.join('/'.join(keys) for keys in fields)} ({name})"
        for name, fields in formats.items()
    )
    if first is None:
        raise FormatError(f"{path}: the file is empty; expected JSON lines with {expected}")
    if not votes:
        start = first[1][:60].decode("utf-8", "replace").strip()
        raise FormatError(
            f"{path}: line {first[0]} and the {non_empty - 1} after it: expected one JSON object "
            f"per line with the fields {expected}, found {start!r}"
        )
    return max(formats, key=lambda name: votes[name])


def table_batches(
    path: Path,
    required: list[str],
    optional: list[str],
    rejected: Counter[str],
    progress: bool = False,
    any_of: tuple[str, ...] = (),
) -> Iterator[pa.Table]:
    """Batches of a CSV (plain or gz) or Parquet table: `line` and the named columns as strings.

    `line` counts the rows from 1 (without the header); an absent optional column is all null.
    any_of: optional columns of which at least one has to be there. CSV rows with another number of
    fields than the header, or with a line break in a named field, are counted in `rejected`.
    White space around a column's name does not count. Raises FormatError if columns are missing.
    """
    columns = required + optional
    if path.suffix == ".parquet":
        names, batches = _parquet(path, columns)
        _check_columns(path, names, required, any_of)
        yield from _with_lines(batches, names, columns)
        return
    with opened(path, progress) as stream:

        def skip(row: pa_csv.InvalidRow) -> str:
            rejected["broken line"] += 1 + (row.text or "").strip("\r\n").count("\n")
            return "skip"

        header = _header(path)  # as the parser below knows the columns
        names = [name.strip().strip('"') for name in header]
        _check_columns(path, names, required, any_of)
        included = [name for name in columns if name in names]
        parsed = [header[names.index(name)] for name in included]
        try:
            reader = pa_csv.open_csv(
                pa.PythonFile(stream, mode="r"),
                read_options=pa_csv.ReadOptions(use_threads=False, block_size=BLOCK),
                parse_options=pa_csv.ParseOptions(
                    newlines_in_values=True, invalid_row_handler=skip
                ),
                convert_options=pa_csv.ConvertOptions(
                    column_types={name: pa.string() for name in parsed},
                    include_columns=parsed,
                    strings_can_be_null=True,
                    null_values=[""],
                    quoted_strings_can_be_null=True,
                ),
            )
            batches = (pa.record_batch(batch.columns, names=included) for batch in reader)
            unbroken = (_without_breaks(batch, included, rejected) for batch in batches)
            yield from _with_lines(unbroken, names, columns)
        except pa.ArrowInvalid as error:
            reason = str(error).split(". ")[0]
            raise FormatError(
                f"{path}: expected a UTF-8 CSV file with the columns {', '.join(columns)} "
                f"({reason})"
            ) from None


def _without_breaks(
    batch: pa.RecordBatch, names: list[str], rejected: Counter[str]
) -> pa.RecordBatch:
    """The rows without a line break in a field.

    An open quote swallows the lines up to the next quote, which may give a row that looks right;
    so such a row and all the lines in it are counted as broken.
    """
    breaks = sum(
        pc.fill_null(pc.count_substring(batch.column(name), "\n"), 0).to_numpy() for name in names
    )
    if not breaks.any():
        return batch
    rejected["broken line"] += int((breaks[breaks > 0] + 1).sum())
    return batch.filter(pa.array(breaks == 0))


def _header(path: Path) -> list[str]:
    with opened(path) as stream:
        first = io.BufferedReader(stream, 2**16).readline(2**16)
    try:
        line = first.decode("utf-8-sig").rstrip("\r\n")
    except UnicodeDecodeError:
        raise FormatError(f"{path}: line 1: expected a UTF-8 CSV header") from None
    return next(csv.reader([line]), [])


def _check_columns(
    path: Path, names: list[str], required: list[str], any_of: tuple[str, ...]
) -> None:
    if any_of and not set(any_of) & set(names) and set(required) <= set(names):
        raise FormatError(
            f"{path}: line 1: expected a column {' or '.join(any_of)} beside "
            f"{', '.join(required)}, found neither"
        )
    missing = [name for name in required if name not in names]
    if missing:
        present = ", ".join(names)[:80] or "nothing"
        raise FormatError(
            f"{path}: line 1: expected the columns {', '.join(required)}, "
            f"{', '.join(missing)} is missing (found {present})"
        )


def _parquet(path: Path, columns: list[str]) -> tuple[list[str], Iterator[pa.RecordBatch]]:
    """The file's column names, and batches of those asked for that it has."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        file = pq.ParquetFile(path)
    except pa.ArrowInvalid as error:
        raise FormatError(f"{path}: expected a Parquet file ({error})") from None
    names = file.schema_arrow.names
    return names, file.iter_batches(2**17, columns=[name for name in columns if name in names])


def _with_lines(
    batches: Iterable[pa.RecordBatch], names: list[str], columns: list[str]
) -> Iterator[pa.Table]:
    line = 1
    for batch in batches:
        arrays = {"line": np.arange(line, line + batch.num_rows, dtype=np.int64)}
        line += batch.num_rows
        for name in columns:
            arrays[name] = (
                batch.column(name) if name in names else pa.nulls(batch.num_rows, pa.string())
            )
        yield pa.table(arrays)
