"""Rows of Parquet and Arrow files (also Feather and the shards of `save_to_disk`), a few hundred at a time."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from sarto.conversations.conversation import RowFault
from sarto.conversations.convert.faults import MOST_ROWS, Row, broken, needs_arrow
from sarto.conversations.convert.streams import CHUNK_BYTES, MOST_RATIO, RATIO_FROM_BYTES, compression_of, open_bytes
from sarto.errors import InvalidArgument

BATCH_ROWS = 512
STREAM_START = b"\xff\xff\xff\xff"


def read_parquet(path: Path, name: str, columns: Sequence[str] | None) -> Iterator[Row]:
    """Rows with these columns, or with all. Raises InvalidArgument for a broken file and FailedPrecondition without
    pyarrow."""
    _arrow(name, "a Parquet file")
    with _seekable(path, name) as file, _refusing(name, "Parquet"):
        from pyarrow import parquet

        opened = parquet.ParquetFile(file, pre_buffer=False)
        _refuse_bomb(opened.metadata, file, name)
        wanted = _wanted(opened.schema_arrow.names, columns, name)
        number = 0
        for batch in opened.iter_batches(batch_size=BATCH_ROWS, columns=wanted, use_threads=False):
            for row in _rows(batch, wanted):
                number += 1
                yield number, 0, row


def read_arrow(path: Path, name: str, columns: Sequence[str] | None) -> Iterator[Row]:
    """The same of an Arrow file or stream."""
    _arrow(name, "an Arrow file")
    with _seekable(path, name) as file, _refusing(name, "Arrow"):
        from pyarrow import ipc

        is_stream = file.read(4) == STREAM_START
        file.seek(0)
        opened = ipc.open_stream(file) if is_stream else ipc.open_file(file)
        wanted = _wanted(opened.schema.names, columns, name)
        batches = opened if is_stream else (opened.get_batch(index) for index in range(opened.num_record_batches))
        number = 0
        for batch in batches:
            chosen = batch.select(wanted)
            chosen.validate(full=True)  # offsets that a broken file has would lead outside of its memory
            for first in range(0, chosen.num_rows, BATCH_ROWS):
                for row in _rows(chosen.slice(first, BATCH_ROWS), wanted):
                    number += 1
                    yield number, 0, row


def _arrow(name: str, what: str) -> None:
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        raise needs_arrow(name, what) from None


@contextmanager
def _seekable(path: Path, name: str) -> Iterator[BinaryIO]:
    """The file; one that is compressed as a whole is unpacked into a temporary one."""
    if not compression_of(path):
        with path.open("rb") as file:
            yield file
        return
    with tempfile.TemporaryFile() as unpacked:
        with open_bytes(path, name) as packed:
            while chunk := packed.read(CHUNK_BYTES):
                unpacked.write(chunk)
        unpacked.seek(0)
        yield unpacked


@contextmanager
def _refusing(name: str, kind: str) -> Iterator[None]:
    """Convert pyarrow's errors to ours."""
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, OSError, ValueError, LookupError, TypeError, MemoryError) as error:
        reason = str(error).partition("\n")[0][:200] or type(error).__name__
        raise broken(name, f"it cannot be read as a {kind} file: {reason}") from None


def _refuse_bomb(metadata: Any, file: BinaryIO, name: str) -> None:
    """Refuse a file whose columns unpack to far more than its size."""
    if metadata.num_rows > MOST_ROWS:
        raise _too_many(name, metadata.num_rows)
    size = file.seek(0, io.SEEK_END)
    unpacked = 0
    for group in range(metadata.num_row_groups):
        unpacked += metadata.row_group(group).total_byte_size
    if unpacked > RATIO_FROM_BYTES and unpacked > MOST_RATIO * size:
        raise broken(name, f"its columns unpack to {unpacked:,} bytes, more than {MOST_RATIO} times the file's size.")


def _too_many(name: str, count: int) -> InvalidArgument:
    return broken(name, f"it has {count:,} rows; a dataset has at most {MOST_ROWS:,}. Split it.")


def _wanted(names: list[str], columns: Sequence[str] | None, name: str) -> list[str]:
    """The columns to read, in the file's order."""
    twice = next((each for at, each in enumerate(names) if each in names[:at]), None)
    if twice is not None:
        raise broken(name, f'two columns are named "{twice}"; rename one.')
    return [each for each in names if columns is None or each in columns]


def _rows(batch: Any, names: list[str]) -> Iterator[dict[str, Any] | RowFault]:
    """Rows of a batch; one with text that is not UTF-8 is a fault."""
    import pyarrow

    try:
        values = [_values(batch.column(name)) for name in names]
    except (UnicodeDecodeError, pyarrow.ArrowException):
        for index in range(batch.num_rows):
            yield _row(batch, names, index)
        return
    for cells in zip(*values, strict=True) if names else ((),) * batch.num_rows:
        yield dict(zip(names, cells, strict=True))


def _row(batch: Any, names: list[str], index: int) -> dict[str, Any] | RowFault:
    row: dict[str, Any] = {}
    for name in names:
        try:
            row[name] = _plain(batch.column(name)[index].as_py())
        except UnicodeDecodeError as error:
            seen = f"byte 0x{error.object[error.start]:02X} at byte offset {error.start}"
            return RowFault(name, seen, "UTF-8 text", "write the column again as UTF-8, or as a binary column")
    return row


def _values(column: Any) -> list[Any]:
    """The cells of a column as Python values."""
    import pyarrow

    kind = column.type
    if pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind):
        cells: list[Any] = column.to_numpy(zero_copy_only=False).tolist()  # several times faster than to_pylist
        return cells
    cells = column.to_pylist()
    return [_plain(value) for value in cells] if pyarrow.types.is_nested(kind) else cells


def _plain(value: Any) -> Any:
    """A value without the nulls of its structures: a table has every key in every row, with null for absent ones."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items() if inner is not None}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    return value
