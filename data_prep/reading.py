"""Raw files as a stream of lines with their numbers.

Files are read in blocks of fixed size, so memory stays bounded whatever the file's length, and a
truncated or foreign file is an error that names it. A line ends with LF, CRLF or CR, also mixed;
every line of a file leaves here, whatever is in it.
"""

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
import pyarrow as pa
from tqdm import tqdm

BLOCK = 16 * 2**20
LONGEST = 128 * 2**20  # bytes of a line; a longer one is not held, its line is rejected
NOT_TEXT = '"not UTF-8"'  # stands for an undecodable line: valid JSON, but no object
TOO_LONG = '"line too long"'


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


def line_ends(data: bytes) -> np.ndarray:
    """Offsets behind the line ends of `data`; what follows the last one is a line too."""
    buffer = np.frombuffer(data, dtype=np.uint8)
    ends = np.flatnonzero(buffer == ord("\n")) + 1
    if b"\r" in data:
        returns = np.flatnonzero(buffer == ord("\r")) + 1
        last = returns == len(buffer)
        lone = returns[last | (buffer[np.where(last, 0, returns)] != ord("\n"))]
        ends = np.union1d(ends, lone)
    if len(buffer) and (not len(ends) or ends[-1] != len(buffer)):
        ends = np.append(ends, len(buffer))
    return ends


def blocks(path: Path, progress: bool = False, block: int = BLOCK) -> Iterator[bytes]:
    """The file in pieces that end with a whole line, without a byte order mark.

    A line beyond LONGEST is not held: TOO_LONG stands in its place.
    """
    begun, skipping = bytearray(), False  # a line that is not all read; dropping its rest
    with opened(path, progress) as stream:
        data = stream.read(block) or b""
        while len(data) < 3 and (more := stream.read(3 - len(data))):
            data += more
        data = data.removeprefix(b"\xef\xbb\xbf") or stream.read(block) or b""
        while data:
            if begun.endswith(b"\r") and not data.startswith(b"\n"):
                yield bytes(begun)
                begun.clear()
            if skipping:
                ends = [place for place in (data.find(b"\n"), data.find(b"\r")) if place >= 0]
                data, skipping = data[min(ends) :] if ends else b"", not ends
            # A CR at the very end may be half of a CRLF.
            end = max(data.rfind(b"\n"), data.rfind(b"\r", 0, max(len(data) - 1, 0))) + 1
            if end:
                yield bytes(begun) + data[:end]
                begun.clear()
            begun += data[end:]
            if len(begun) > LONGEST:
                ended = begun.endswith(b"\r")
                begun = bytearray(TOO_LONG.encode() + b"\r" * ended)
                skipping = not ended
            data = stream.read(block) or b""
        if begun:
            yield bytes(begun)


def line_batches(path: Path, progress: bool = False, block: int = BLOCK) -> Iterator[pa.Table]:
    """Batches of the columns `line` (int64, from 1), `text` (string, with its line end) and `raw`.

    `raw` (binary) holds the line where it is no UTF-8 and `text` is NOT_TEXT; else it is null.
    """
    line = 1
    for data in blocks(path, progress, block):
        table = _lines(data, line)
        line += table.num_rows
        yield table


def _lines(data: bytes, first: int) -> pa.Table:
    ends = line_ends(data)
    raw: list[bytes | None] | None = None
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        starts = np.concatenate([[0], ends[:-1]])
        pieces = [data[start:end] for start, end in zip(starts, ends, strict=True)]
        texts = [_text_or_mark(piece) for piece in pieces]
        raw = [piece if text is not piece else None
               for piece, text in zip(pieces, texts, strict=True)]  # fmt: skip
        data = b"".join(texts)
        ends = np.cumsum([len(text) for text in texts])
    offsets = np.concatenate([[0], ends]).astype(np.int64)
    text = pa.LargeStringArray.from_buffers(
        len(ends), pa.py_buffer(offsets.tobytes()), pa.py_buffer(data)
    )
    return pa.table(
        {
            "line": np.arange(first, first + len(ends), dtype=np.int64),
            "text": text,
            "raw": pa.nulls(len(ends), pa.binary()) if raw is None else pa.array(raw, pa.binary()),
        }
    )


def _text_or_mark(line: bytes) -> bytes:
    try:
        line.decode("utf-8")
    except UnicodeDecodeError:
        return NOT_TEXT.encode() + (b"\n" if line.endswith((b"\n", b"\r")) else b"")
    return line
