"""Output of commands: tables, JSON, errors. Results go to standard output, everything else to standard error."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from sarto.cli.client import ApiError
from sarto.errors import InvalidArgument, SartoError

USAGE_EXIT, FAILURE_EXIT = 2, 1


def console() -> Console:
    return Console(highlight=False)


def messages() -> Console:
    return Console(highlight=False, stderr=True)


def print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))


def print_rows(rows: Iterable[Mapping[str, str]], columns: Sequence[str], empty: str) -> None:
    """A table with these columns, or one line if there are no rows."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text(row[column]) for column in columns))
    if table.row_count:
        console().print(table)
    else:
        messages().print(empty)


def print_facts(facts: Mapping[str, str]) -> None:
    """A line with name and value for each; empty values are omitted."""
    table = Table.grid(padding=(0, 2))
    for name, value in facts.items():
        if value:
            table.add_row(Text(name, style="bold"), Text(value))
    console().print(table)


def print_error(error: SartoError) -> int:
    """Print a paragraph with the faults of the request under it; returns the exit code."""
    violations = error.violations if isinstance(error, ApiError) else []
    head = "The request was refused" if violations else error.message
    out = messages()
    out.print(Text.assemble(("Error: ", "bold red"), head))
    for field, description in violations:
        text = textwrap.fill(f"{field}: {description}" if field else description, 100, subsequent_indent="    ")
        out.print(Text(f"  - {text}"))
    wrong_request = isinstance(error, InvalidArgument) or (
        isinstance(error, ApiError) and error.answered_http_status == 400
    )
    return USAGE_EXIT if wrong_request else FAILURE_EXIT


def short_id(name: str) -> str:
    """`7` of `projects/p/locations/l/tuningJobs/7`."""
    return name.rsplit("/", 1)[-1]


def local_time(stamp: str) -> str:
    """An RFC 3339 time in local form; empty stays empty."""
    return datetime.fromisoformat(stamp).astimezone().strftime("%Y-%m-%d %H:%M:%S") if stamp else ""


def duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h {minutes:02d}m" if hours else f"{minutes}m {rest:02d}s" if minutes else f"{rest}s"
