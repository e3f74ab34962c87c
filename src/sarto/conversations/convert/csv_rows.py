"""Rows of CSV and TSV: strict quotes, a header of different names, the same number of cells in each row."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from typing import BinaryIO

from sarto.conversations.conversation import RowFault
from sarto.conversations.convert.faults import MOST_LINE_BYTES, Row, broken

DELIMITERS = (",", ";", "\t", "|")
SAMPLE_CHARACTERS = 1 << 16
QUOTES = "write a quote inside a quoted cell twice, and close every quote"


def read_csv(stream: BinaryIO, name: str, delimiter: str) -> Iterator[Row]:
    """Rows under the header, each with its number and the line where it begins. Raises InvalidArgument for a header
    that names no columns."""
    csv.field_size_limit(MOST_LINE_BYTES)
    text = io.TextIOWrapper(stream, "utf-8", newline="")
    reader = csv.reader(_lines(text, name), delimiter=delimiter, strict=True)
    try:
        header = read_header(next(reader, []), name)
    except csv.Error as error:
        raise broken(name, f"the header cannot be read ({error}); {QUOTES}.") from None
    width, number = len(header), 0
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            number += 1
            yield number, line, RowFault("", _broken_row(error), "cells of text", QUOTES)
            continue
        if cells is None:
            return
        if len(cells) == width:
            number += 1
            yield number, line, dict(zip(header, cells, strict=True))
        elif cells:  # an empty line is no row
            number += 1
            fix = f"put cells with {delimiter!r}, quotes or line ends in quotes"
            yield number, line, RowFault("", f"{len(cells):,} cells", f"{width:,}, as in the header", fix)


def read_header(cells: list[str], name: str) -> list[str]:
    """The names of the columns; one without a name (an index that was saved along) is called by its number."""
    if not any(cell.strip() for cell in cells):
        raise broken(name, "it has no header: the first line must name the columns.")
    header = [cell.strip() or f"column {number}" for number, cell in enumerate(cells, 1)]
    for number, column in enumerate(header, 1):
        first = header.index(column) + 1
        if first != number:
            raise broken(name, f'the header names "{column}" twice, in columns {first} and {number}; rename one.')
    return header


def guess_delimiter(stream: BinaryIO) -> str:
    """The delimiter with which the first rows have most cells, and equally many."""
    text = io.TextIOWrapper(stream, "utf-8", newline="").read(SAMPLE_CHARACTERS)
    best, best_score = DELIMITERS[0], (0.0, 1)
    for delimiter in DELIMITERS:
        rows = []
        try:
            for cells in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter):
                rows.append(len(cells))
        except csv.Error:
            continue
        if len(text) == SAMPLE_CHARACTERS:
            rows = rows[:-1]  # the last one may be cut
        width = rows[0] if rows else 0
        score = (sum(row == width for row in rows) / max(1, len(rows)), width)
        if width > 1 and score > best_score:
            best, best_score = delimiter, score
    return best


def _lines(text: io.TextIOWrapper, name: str) -> Iterator[str]:
    number = 0
    while line := text.readline(MOST_LINE_BYTES):
        number += 1
        if len(line) == MOST_LINE_BYTES:
            raise broken(name, f"line {number:,} is longer than {MOST_LINE_BYTES >> 20} Mi characters.")
        yield line


def _broken_row(error: csv.Error) -> str:
    """The fault of a row that the reader refuses."""
    if "unexpected end" in str(error):
        return "a quote that is never closed"
    if "field limit" in str(error):
        return f"a cell of more than {MOST_LINE_BYTES >> 20} Mi characters, or a quote that is not closed"
    return f"broken quotes ({error})"
