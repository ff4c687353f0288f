"""Parquet tables as batches of the named columns, ids and titles as text."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from .delimited import check_columns
from .reading import FormatError

_ROWS = 2**17


def parquet_batches(
    path: Path,
    required: list[str],
    optional: list[str],
    any_of: tuple[str, ...] = (),
) -> Iterator[pa.Table]:
    """Batches of `line` (int64, the row from 1), `broken` and `value` (null), and the columns.

    Bytes are read as UTF-8, categories as their values, whole floats as whole numbers, so that ids
    meet (pandas makes floats of ids where one is missing); dates and times stay what they are.
    Raises FormatError, naming file and column, for lists, structs, bytes that are no UTF-8, damaged
    pages, doubled and missing columns.
    """
    if path.is_dir():
        raise FormatError(f"{path}: expected one Parquet file, found a folder of parts")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        file = pq.ParquetFile(path, page_checksum_verification=True)
        schema = file.schema_arrow
    except (pa.ArrowException, OSError) as error:
        raise FormatError(f"{path}: expected a Parquet file ({_sentence(error)})") from None
    names = [name.strip() for name in schema.names]
    columns = required + optional
    check_columns(path, names, required, optional, any_of)
    chosen = {name: schema.names[names.index(name)] for name in columns if name in names}
    for name, written in chosen.items():
        _check_type(path, name, schema.field(written).type)
    line = 1
    batches = file.iter_batches(_ROWS, columns=list(chosen.values()))
    while True:
        try:
            batch = next(batches, None)
            if batch is None:
                return
            arrays: dict[str, pa.Array] = {"line": pa.array(range(line, line + batch.num_rows))}
            arrays |= {name: pa.nulls(batch.num_rows, pa.string()) for name in ("broken", "value")}
            for name in columns:
                if name in chosen:
                    arrays[name] = _plain(path, name, batch.column(chosen[name]), line)
                else:
                    arrays[name] = pa.nulls(batch.num_rows, pa.string())
        except FormatError:
            raise
        except (pa.ArrowException, OSError) as error:
            column = _damaged(path, list(chosen.values()))
            raise FormatError(
                f"{path}: column {column}, at or after row {line}: the file is damaged "
                f"({_sentence(error)}); expected a complete file, fetch it again"
            ) from None
        line += batch.num_rows
        yield pa.table(arrays)


def _check_type(path: Path, name: str, kind: pa.DataType) -> None:
    value = kind.value_type if pa.types.is_dictionary(kind) else kind
    if pa.types.is_nested(value) or pa.types.is_duration(value) or pa.types.is_time(value):
        raise FormatError(f"{path}: column {name}: expected text or numbers, found {kind}")


def _plain(path: Path, name: str, values: pa.Array, line: int) -> pa.Array:
    """Text, numbers or dates that DuckDB writes as everybody does."""
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    kind = values.type
    if (
        pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or str(kind) == "binary_view"
        or (pa.types.is_fixed_size_binary(kind))
    ):
        values = values.cast(pa.binary()).view(pa.string())
        kind = values.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or str(kind) == "string_view":
        values = values.cast(pa.large_string())
        try:
            values.validate(full=True)
        except pa.ArrowInvalid:
            for row, text in enumerate(values.cast(pa.large_binary()).to_pylist(), start=line):
                try:
                    (text or b"").decode("utf-8")
                except UnicodeDecodeError:
                    raise FormatError(
                        f"{path}: column {name}, row {row}: expected UTF-8, found {text[:60]!r}"
                    ) from None
        return values
    if pa.types.is_floating(kind):
        values = values.cast(pa.float64())
        known = values.drop_null().filter(pc.is_finite(values.drop_null()))
        limit = pc.less(pc.abs(known), 2.0**53)
        if pc.all(pc.and_(pc.equal(pc.floor(known), known), limit)).as_py() is not False:
            return pc.if_else(pc.is_finite(values), values, None).cast(pa.int64())
    if pa.types.is_timestamp(kind):
        return (
            values.cast(pa.timestamp("us", kind.tz), safe=False)
            .cast(pa.int64())
            .cast(pa.timestamp("us"))
        )
    return values


def _damaged(path: Path, columns: list[str]) -> str:
    """The first column that cannot be read by itself."""
    for column in columns:
        try:
            for _ in pq.ParquetFile(path, page_checksum_verification=True).iter_batches(
                _ROWS, columns=[column]
            ):
                pass
        except (pa.ArrowException, OSError):
            return column
    return " or ".join(columns)


def _sentence(error: Exception) -> str:
    return str(error).split(". ")[0].strip().splitlines()[0] if str(error).strip() else "no reason"
