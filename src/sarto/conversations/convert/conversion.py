"""A conversion: rows of all sources through filters, shape, de-duplication and split, to one or two outputs.

Reads row by row. Memory grows only with the digests of rows where these are de-duplicated (about 100 bytes a row).
The output depends on the mapping and the sources' bytes alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, BinaryIO

from sarto.conversations.conversation import RowFault
from sarto.conversations.convert.faults import MOST_ROWS, Fault
from sarto.conversations.convert.files import TRAIN, SourceFile, read_rows
from sarto.conversations.convert.mapping import ColumnMapping, Filter
from sarto.conversations.convert.places import column_of, place
from sarto.conversations.convert.shapes import line_of
from sarto.errors import InvalidArgument
from sarto.plurals import row_count

SHOWN_FAULTS = 20
SHOWN_ROWS = 3
VALIDATION = "validation"
MOST_VALIDATION_ROWS = 5_000
"""Most rows of a job's validation data."""
FORMULA_STARTS = ("=", "+", "-", "@")
SUSPECT = (*FORMULA_STARTS, "#")
SPREADSHEET_ERRORS = ("#NAME?", "#REF!", "#VALUE!", "#N/A", "#DIV/0!", "#NUM!", "#NULL!")
CELL_LIMIT = 32_767
"""Characters at which Excel cuts a cell."""


@dataclass
class Report:
    """What became of the rows."""

    rows: int = 0
    training: int = 0
    validation: int = 0
    filtered: int = 0
    duplicates: int = 0
    faults: int = 0
    shown: list[Fault] = field(default_factory=list)
    """The first faults."""
    examples: list[bytes] = field(default_factory=list)
    """The first lines of the output."""
    findings: Counter[str] = field(default_factory=Counter)
    """Notes on cells, with how often each holds."""
    other_splits: dict[str, int] = field(default_factory=dict)
    """Files that were left out, by their split."""

    def to_json(self) -> dict[str, Any]:
        return {
            "rows": self.rows, "trainingRows": self.training, "validationRows": self.validation,
            "filteredRows": self.filtered, "duplicateRows": self.duplicates, "faultyRows": self.faults,
            "faults": [fault.to_json() for fault in self.shown], "findings": dict(self.findings),
        }  # fmt: skip


def convert(
    files: Sequence[SourceFile],
    mapping: ColumnMapping,
    training: BinaryIO | None = None,
    validation: BinaryIO | None = None,
) -> Report:
    """Convert all rows and write them; without outputs, count only. Raises InvalidArgument for a file that cannot be
    read. Faults of rows are in the report: see `refuse_unusable`."""
    report, take = Report(), _Taker(mapping)
    chosen = _of_split(files, mapping, report)
    has_share = mapping.validation_share > 0
    for file, is_validation in chosen:
        for number, line, row in read_rows(file, mapping.encoding, mapping.delimiter, take.columns):
            report.rows = rows = report.rows + 1
            if rows > MOST_ROWS:
                raise InvalidArgument(f"There are more than {MOST_ROWS:,} rows, the most of a dataset; split them.")
            try:
                written = take(row, report)
            except RowFault as fault:
                report.faults += 1
                if len(report.shown) < SHOWN_FAULTS:
                    report.shown.append(Fault(file.name, number, line, fault))
                continue
            if written is None:
                continue
            if len(report.examples) < SHOWN_ROWS:
                report.examples.append(written)
            if is_validation or (has_share and take.is_validation(written)):
                report.validation += 1
                target = validation
            else:
                report.training += 1
                target = training
            if target is not None:
                target.write(written)
    _note_limits(report)
    return report


def _of_split(files: Sequence[SourceFile], mapping: ColumnMapping, report: Report) -> Iterator[tuple[SourceFile, bool]]:
    """The files to convert, and whether each is validation data. A folder's validation split is that, unless rows are
    split off by a share."""
    splits = sorted({file.split for file in files if file.split})
    if splits and mapping.split not in splits and not any(not file.split for file in files):
        raise InvalidArgument(
            f'There is no split "{mapping.split}"; there are {", ".join(splits)}. Choose with --split.'
        )
    takes_validation = not mapping.validation_share and mapping.split == TRAIN
    for file in files:
        if file.split in ("", mapping.split):
            yield file, False
        elif file.split == VALIDATION and takes_validation:
            yield file, True
        else:
            report.other_splits[file.split] = report.other_splits.get(file.split, 0) + 1


class _Taker:
    """Filters, converts and de-duplicates rows."""

    def __init__(self, mapping: ColumnMapping) -> None:
        self._filters = [_filter(each) for each in mapping.filters]
        self._line = line_of(mapping)
        self._seen: set[bytes] | None = set() if mapping.deduplicate else None
        self._share, self._key = mapping.validation_share, mapping.seed.to_bytes(8, "little")
        self._delimited = mapping.delimiter != ""
        self._watched = [place(name) for name in mapping.used()] if self._delimited else []
        self._is_plain = not (self._filters or self._watched or mapping.deduplicate)
        self.columns = None if mapping.shape == "gemini" else _Columns(mapping.used())

    def __call__(self, row: Mapping[str, Any] | RowFault, report: Report) -> bytes | None:
        """The line of a row; None for one that is left out. Raises RowFault."""
        if isinstance(row, RowFault):
            raise row
        if self._is_plain:
            return self._line(row)
        for test in self._filters:
            if not test(row):
                report.filtered += 1
                return None
        for read in self._watched:
            value = read(row)
            if value and type(value) is str and (value[0] in SUSPECT or len(value) == CELL_LIMIT):
                _look_at(value, report)
        line = self._line(row)
        if self._seen is not None:
            digest = blake2b(line, digest_size=15).digest()
            if digest in self._seen:
                report.duplicates += 1
                return None
            self._seen.add(digest)
        return line

    def is_validation(self, line: bytes) -> bool:
        """Whether a row belongs to the validation data: by the hash of its line and the seed, so equal rows are on one
        side, and a row stays on its side when others are added."""
        number = int.from_bytes(blake2b(line, digest_size=8, key=self._key).digest(), "little")
        return number < self._share * 2**64


class _Columns(Sequence[str]):
    """The columns that a mapping reads, for `in`: a path such as `meta.lang` reads the column `meta`."""

    def __init__(self, used: Sequence[str]) -> None:
        self._names = {*used, *(column_of(name, []) for name in used)}

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: Any) -> Any:
        return sorted(self._names)[index]


def _filter(one: Filter) -> Callable[[Mapping[str, Any]], bool]:
    read = place(one.column)

    def test(row: Mapping[str, Any]) -> bool:
        text = _spelled(read(row))
        if one.equals is not None and text != one.equals:
            return False
        if one.non_empty and (not text or text.isspace()):
            return False
        return one.min_chars <= len(text) and (one.max_chars is None or len(text) <= one.max_chars)

    return test


def _spelled(value: Any) -> str:
    """A value as text for a comparison."""
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _look_at(value: str, report: Report) -> None:
    """Count a cell that a spreadsheet changes or has changed."""
    if value[0] in FORMULA_STARTS and len(value) > 1 and _is_formula(value):
        report.findings["cells begin like a formula of a spreadsheet; they are kept as text"] += 1
    if value in SPREADSHEET_ERRORS:
        report.findings["cells hold an error of a spreadsheet, such as #NAME?"] += 1
    if len(value) == CELL_LIMIT:
        report.findings[f"cells have exactly {CELL_LIMIT:,} characters, where Excel cuts a cell"] += 1


def _is_formula(text: str) -> bool:
    if text[0] in "=@":
        return not text[1].isspace()
    return text[1].isalpha() or text[1] in "(=@"


def refuse_unusable(report: Report, mapping: ColumnMapping) -> None:
    """Raise InvalidArgument if rows cannot be used and the mapping does not skip them, or if none is left."""
    if report.faults and not mapping.skip_faults:
        rest = report.faults - len(report.shown)
        shown = "".join(f"\n  {fault}" for fault in report.shown) + (f"\n  and {rest:,} more" if rest else "")
        raise InvalidArgument(
            f"{row_count(report.faults)} of {report.rows:,} cannot be used; nothing was written. Correct them, filter "
            f"them out, or leave them out with --skip-faults:{shown}"
        )
    if not report.training:
        left = f"{report.filtered:,} by filters, {report.faults:,} for faults, {report.duplicates:,} as duplicates"
        shown = "".join(f"\n  {fault}" for fault in report.shown)
        raise InvalidArgument(
            f"No row is left of {report.rows:,} ({left}, {report.validation:,} for validation).{shown}"
        )


def _note_limits(report: Report) -> None:
    if report.validation > MOST_VALIDATION_ROWS:
        report.findings[f"rows are for validation; a job takes at most {MOST_VALIDATION_ROWS:,}"] = report.validation
