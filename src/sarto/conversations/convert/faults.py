"""Faults of a user's files: of a row, with file, row and column, and of a file as a whole."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sarto.conversations.conversation import RowFault, describe
from sarto.errors import FailedPrecondition, InvalidArgument

EXTRA = "pip install 'sarto[parquet]'"
MOST_LINE_BYTES = 16 << 20
"""The longest row in and out: the limit of a line of a job's dataset."""
MOST_ROWS = 10_000_000
"""Most rows in and out: the limit of a job's dataset."""

Row = tuple[int, int, dict[str, Any] | RowFault]
"""Number of the row in its file, from 1; its line, 0 in files without lines; its columns, or the reason why it cannot
be read."""


@dataclass(frozen=True)
class Fault:
    """A row that cannot be used."""

    file: str
    row: int
    line: int
    fault: RowFault

    def __str__(self) -> str:
        line = f" (line {self.line:,})" if self.line else ""
        column = f', column "{self.fault.path}"' if self.fault.path else ""
        return f"{self.file} row {self.row:,}{line}{column}: {self.fault.finding}"

    def to_json(self) -> dict[str, Any]:
        found = self.fault.to_json()
        return {
            "file": self.file, "row": self.row, "line": self.line, "column": found["path"],
            "seen": found["seen"], "wanted": found["wanted"], "fix": found["fix"],
        }  # fmt: skip


def broken(file: str, what: str) -> InvalidArgument:
    """The error for a file that cannot be read further."""
    return InvalidArgument(f"{file}: {what}")


def needs_arrow(file: str, what: str) -> FailedPrecondition:
    return FailedPrecondition(f"{file}: {what} is read with pyarrow, which is not installed. Install it: {EXTRA}")


def seen(value: object) -> str:
    """A value of a cell in a few words; also of types that JSON does not have."""
    if isinstance(value, bytes):
        return f"{len(value):,} bytes of binary data"
    if isinstance(value, float):
        return f"the number {value!r}, which may have lost digits"
    described = describe(value)
    return described if described != type(value).__name__ else f"a value of type {described}"
