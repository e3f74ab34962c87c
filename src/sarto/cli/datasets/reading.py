"""The mapping of a conversion: from options, from a file, or guessed from the first rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from urllib.parse import quote

import typer

from sarto.cli.options import client
from sarto.conversations.convert.files import SourceFile
from sarto.conversations.convert.guess import Guess, Sample, guess, read_sample
from sarto.conversations.convert.mapping import ColumnMapping, Filter, parse_mapping, read_mapping
from sarto.conversations.convert.places import column_of
from sarto.errors import InvalidArgument

TABLES = ("csv", "tsv", "parquet", "arrow")
"""Formats whose first row has every column."""
ROLES = ("input", "output", "messages", "role", "text", "chosen", "rejected", "system", "tools")


@dataclass(frozen=True)
class Given:
    """The options of a mapping as they were given; empty ones were not."""

    input: tuple[str, ...] = ()
    output: str = ""
    messages: str = ""
    role: str = ""
    text: str = ""
    chosen: str = ""
    rejected: str = ""
    system: str = ""
    tools: str = ""
    system_text: str = ""
    filters: tuple[Filter, ...] = ()
    split: str = ""
    validation_share: float = 0.0
    seed: int = 0
    deduplicate: bool = False
    skip_faults: bool = False
    encoding: str = ""
    delimiter: str = ""

    def columns(self) -> dict[str, tuple[str, ...]]:
        named = {role: getattr(self, role) for role in ROLES}
        return {role: names if isinstance(names, tuple) else (names,) for role, names in named.items() if names}


@dataclass(frozen=True)
class Choice:
    """A mapping, how it came about, and the rows and columns for its preview."""

    mapping: ColumnMapping
    title: str
    is_certain: bool
    sample: Sample


def read_map(context: typer.Context, name: str) -> ColumnMapping:
    """The mapping of a local file, or of an object beside uploaded data."""
    if not name.startswith("gs://"):
        return read_mapping(Path(name))
    bucket, _, key = name.removeprefix("gs://").partition("/")
    with client(context) as api:
        text = api.text(f"/storage/v1/b/{bucket}/o/{quote(key, safe='')}", alt="media")
    return parse_mapping(text.encode(), name)


def chosen(files: Sequence[SourceFile], given: Given, mapping: ColumnMapping | None) -> Choice:
    """Raises InvalidArgument for options that contradict each other, and for columns that are not there."""
    if mapping is not None:
        extra = [each.name for each in fields(Given) if getattr(given, each.name) != each.default]
        if extra:
            raise InvalidArgument(
                f"--map has the whole mapping; remove --{extra[0].replace('_', '-')}, or edit the file."
            )
        sample = read_sample(files, mapping.encoding, mapping.delimiter)
        found = Guess(_delimited(mapping, sample), "as the mapping file has it", True)
    else:
        sample = read_sample(files, given.encoding or "utf-8", given.delimiter)
        found = _named(given, sample) if set(given.columns()) - {"system", "tools"} else guess(sample)
        found = replace(found, mapping=_completed(found.mapping, given))
    _check_columns(found.mapping, files, sample)
    return Choice(found.mapping, found.title, found.is_certain, sample)


def _delimited(mapping: ColumnMapping, sample: Sample) -> ColumnMapping:
    """A mapping with the delimiter of its files, where it names none."""
    return mapping if mapping.delimiter else replace(mapping, delimiter=sample.delimiter)


def _named(given: Given, sample: Sample) -> Guess:
    """The mapping of named columns; the shape follows from the roles."""
    columns = given.columns()
    if "chosen" in columns or "rejected" in columns:
        shape = "preference"
    elif "messages" in columns:
        found = guess(Sample(sample.rows, [given.messages], sample.delimiter)) if _is_known(given, sample) else None
        is_turns = bool(given.role or given.text) or (found is not None and found.mapping.shape == "turns")
        shape = "turns" if is_turns else "messages"
        if is_turns and found is not None:
            columns = {**found.mapping.columns, **columns}
    else:
        shape = "columns"
    return Guess(ColumnMapping(shape, columns), "as the options have it", True)


def _is_known(given: Given, sample: Sample) -> bool:
    """Whether the guess knows the column of messages."""
    try:
        guess(Sample(sample.rows, [given.messages], sample.delimiter))
    except InvalidArgument:
        return False
    return True


def _completed(mapping: ColumnMapping, given: Given) -> ColumnMapping:
    """A mapping with the options that do not depend on its shape."""
    also = {role: names for role, names in given.columns().items() if role in ("system", "tools")}
    return replace(
        mapping,
        columns={**mapping.columns, **also},
        system_text=given.system_text,
        filters=given.filters,
        split=given.split or mapping.split,
        validation_share=given.validation_share,
        seed=given.seed,
        deduplicate=given.deduplicate,
        skip_faults=given.skip_faults,
        encoding=given.encoding or mapping.encoding,
        delimiter=given.delimiter or mapping.delimiter,
    )


def _check_columns(mapping: ColumnMapping, files: Sequence[SourceFile], sample: Sample) -> None:
    if files[0].format not in TABLES:
        return  # rows of JSON may have different keys
    for name in mapping.used():
        if column_of(name, sample.columns) not in sample.columns:
            listed = ", ".join(sample.columns[:30])
            raise InvalidArgument(f'{files[0].name} has no column "{name}"; it has {listed}.')


def filters(
    where: Sequence[str], non_empty: Sequence[str], min_chars: Sequence[str], max_chars: Sequence[str]
) -> tuple[Filter, ...]:
    """The filters of the options. Raises InvalidArgument."""
    return (
        *(Filter(column, equals=value) for column, value in (_pair(each, "--where") for each in where)),
        *(Filter(column, non_empty=True) for column in non_empty),
        *(
            Filter(column, min_chars=_count(text))
            for column, text in (_pair(each, "--min-chars") for each in min_chars)
        ),
        *(
            Filter(column, max_chars=_count(text))
            for column, text in (_pair(each, "--max-chars") for each in max_chars)
        ),
    )


def _pair(text: str, option: str) -> tuple[str, str]:
    column, mark, value = text.partition("=")
    if not column or not mark:
        raise InvalidArgument(f"{option} is written COLUMN=VALUE, not {text!r}.")
    return column, value


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 12:
        raise InvalidArgument(f"A number of characters is wanted, not {text!r}.")
    return int(text)
