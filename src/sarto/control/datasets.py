"""The quick look at a dataset when a job is created: it exists, its size is allowed, its first rows can be learned.

The run itself reads every row. Knows no tokens; used by `validation`.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from sarto.control.context import Control
from sarto.errors import InvalidArgument, NotFound, SartoError
from sarto.schema.examples import DataFormat, RowFault, parse_line
from sarto.storage.buckets import StoredObject

LOOK_BYTES = 1_000_000
LOOK_ROWS = 100


def look(control: Control, project: str, field: str, uri: str, data_format: DataFormat) -> StoredObject:
    """The dataset's object, as the project may read it. Raises InvalidArgument on `field` with what is wrong."""
    found = find(control, project, field, uri)
    if fault := first_fault(control, found, data_format):
        raise InvalidArgument.field(field, fault)
    return found


def find(control: Control, project: str, field: str, uri: str) -> StoredObject:
    """The dataset's object, whatever its rows are. Raises InvalidArgument on `field`."""
    if uri.startswith("projects/") and "/datasets/" in uri:
        raise InvalidArgument.field(
            field, f'"{uri}" is a managed dataset; Sarto reads files: write gs://BUCKET/FILE.jsonl'
        )
    try:
        found = control.buckets.resolve(uri, field, project)
    except NotFound as error:
        raise InvalidArgument.field(field, f"{error.message} ({uri})") from None
    if not found.name.endswith(".jsonl"):
        raise InvalidArgument.field(field, f'"{uri}" is not a JSONL file; its name must end with .jsonl')
    if found.size == 0:
        raise InvalidArgument.field(field, f'"{uri}" is empty; write one example per line')
    if found.size > control.limits.max_dataset_bytes:
        raise InvalidArgument.field(
            field, f'"{uri}" has {found.size:,} bytes; at most {control.limits.max_dataset_bytes:,} are allowed'
        )
    return found


def first_fault(control: Control, found: StoredObject, data_format: DataFormat) -> str:
    """What is wrong with the first rows, with the file's name in front; empty if nothing."""
    if found.fields.kms_key:
        with control.buckets.open(found) as file:
            fault = _fault_of(file.read(LOOK_BYTES), found.size, data_format)
    else:
        fault = _first_fault(control.buckets.path(found), found.size, data_format)
    return f"{found.name.rpartition('/')[2]} {fault}" if fault else ""


@lru_cache(maxsize=1024)
def _first_fault(content: Path, size: int, data_format: DataFormat) -> str:
    """The path names its content, so answers may be remembered."""
    with content.open("rb") as file:
        return _fault_of(file.read(LOOK_BYTES), size, data_format)


def _fault_of(head: bytes, size: int, data_format: DataFormat) -> str:
    lines = head.split(b"\n")
    if size > len(head):
        lines.pop()  # cut in the middle
    seen = 0
    for number, raw in enumerate(lines[:LOOK_ROWS], 1):
        if not raw.strip():
            continue
        seen += 1
        try:
            parse_line(raw, number, data_format=data_format)
        except RowFault as fault:
            return str(fault)
        except SartoError as error:
            return error.message
    if not seen and size <= len(head):
        return "holds only blank lines; write one example per line"
    return ""
