"""The quick check of a dataset at create: it exists, its size is allowed, and its first rows are valid.

The run itself reads every row.
"""

from __future__ import annotations

import hashlib
import shutil
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

from sarto.control.context import Control
from sarto.conversations import dropping
from sarto.conversations.examples import DataFormat, RowFault, parse_line
from sarto.errors import InvalidArgument, NotFound, SartoError
from sarto.storage.buckets.gzip_objects import is_packed, unpacked
from sarto.storage.buckets.store import StoredObject
from sarto.system.failpoints import around

LOOK_BYTES = 1_000_000
LOOK_ROWS = 100
FIRST = ". The first: "


def look(
    control: Control, project: str, field: str, uri: str, data_format: DataFormat, *, quotes: bool
) -> StoredObject:
    """The dataset's object, readable by the project. Raises InvalidArgument on `field` with the fault, and with text of
    the first faulty row only if it `quotes`."""
    stored = find(control, project, field, uri)
    if words := refusal(control, stored, data_format):
        raise InvalidArgument.field(field, words if quotes else words.partition(FIRST)[0])
    return stored


def find(control: Control, project: str, field: str, uri: str) -> StoredObject:
    """The dataset's object, without a check of its rows. Raises InvalidArgument on `field`."""
    if uri.startswith("projects/") and "/datasets/" in uri:
        raise InvalidArgument.field(
            field, f'"{uri}" is a managed dataset; Sarto reads files: write gs://BUCKET/FILE.jsonl.'
        )
    try:
        stored = control.buckets.resolve(uri, field, project)
    except NotFound as error:
        raise InvalidArgument.field(field, f"{uri}: {error.message}") from None
    if not stored.name.endswith(".jsonl"):
        raise InvalidArgument.field(field, f'"{uri}" is not a JSONL file; its name must end with .jsonl.')
    if stored.size == 0:
        raise InvalidArgument.field(field, f'"{uri}" is empty; write one example per line.')
    if stored.size > control.limits.max_dataset_bytes:
        raise InvalidArgument.field(
            field, f'"{uri}" has {stored.size:,} bytes; at most {control.limits.max_dataset_bytes:,} are allowed.'
        )
    return stored


def open_text(control: Control, stored: StoredObject) -> BinaryIO:
    """The content of an object, decompressed if it is stored as gzip. Reading raises InvalidArgument for invalid gzip
    and for more bytes than a dataset may have."""
    file = control.buckets.open(stored)
    return unpacked(stored, file, control.limits.max_dataset_bytes) if is_packed(stored) else file


def copy_text(control: Control, stored: StoredObject, target: Path) -> tuple[int, str]:
    """Write the content of an object to `target`; returns its size and SHA-256. Raises InvalidArgument."""
    with open_text(control, stored) as source, target.open("wb") as file:
        shutil.copyfileobj(source, file)
    with target.open("rb") as file:
        return target.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest()


def pin(control: Control, stored: StoredObject, target: Path, *, is_private: bool) -> tuple[int, str]:
    """Make the text of an object a file of a workspace; returns its size and SHA-256. `is_private`: the workspace may
    hold sealed data in the open. Raises InvalidArgument."""
    is_sealed = bool(stored.fields.kms_key)
    if (is_sealed and is_private) or (is_packed(stored) and not is_sealed):
        return copy_text(control, stored, target)
    with around("link"):
        control.buckets.link_into(stored, target)
    return stored.size, stored.sha256


def refusal(control: Control, stored: StoredObject, data_format: DataFormat) -> str:
    """The reason for which a job would refuse this file, by its first rows; empty if there is none."""
    name = stored.name.rpartition("/")[2]
    if stored.fields.kms_key or is_packed(stored):
        with open_text(control, stored) as file:
            return _refusal(name, file.read(LOOK_BYTES + 1), data_format)
    return _remembered_refusal(name, control.buckets.path(stored), data_format)


@lru_cache(maxsize=1024)
def _remembered_refusal(name: str, content: Path, data_format: DataFormat) -> str:
    """`_refusal`, cached by path, which names the content."""
    with content.open("rb") as file:
        return _refusal(name, file.read(LOOK_BYTES + 1), data_format)


def _refusal(name: str, head: bytes, data_format: DataFormat) -> str:
    """A file that ends within the first rows is held to the 10 % rule. A longer one is refused when none of its first
    rows can be used."""
    is_whole = len(head) <= LOOK_BYTES
    lines = head.split(b"\n")
    if not is_whole:
        lines.pop()  # cut in the middle
    rows = [(number, raw) for number, raw in enumerate(lines, 1) if raw.strip()]
    is_whole = is_whole and len(rows) <= LOOK_ROWS
    rows = rows[:LOOK_ROWS]
    if not rows:
        return f"{name} holds only blank lines; write one example per line" if is_whole else ""
    faults = [fault for number, raw in rows if (fault := _fault(raw, number, data_format))]
    words = dropping.refusal(name, len(faults), len(rows))
    if not faults or not words or (not is_whole and len(faults) < len(rows)):
        return ""
    if not is_whole:
        words = f"{name}: none of the first {len(rows):,} rows can be used"
    return f"{words}{FIRST}{faults[0]}"


def _fault(raw: bytes, line: int, data_format: DataFormat) -> str:
    try:
        parse_line(raw, line, data_format=data_format)
    except RowFault as fault:
        return str(fault)
    except SartoError as error:
        return error.message
    return ""
