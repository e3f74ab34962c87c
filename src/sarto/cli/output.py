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
    """Standard error. A long line is left to the terminal, so that a name in it can be copied whole."""
    return Console(highlight=False, stderr=True, soft_wrap=True)


def print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))


def print_rows(rows: Iterable[Mapping[str, str]], columns: Sequence[str], empty: str) -> None:
    """A table with these columns, or one line if there are no rows. Without a terminal: a row a line, separated by
    tabs. On a terminal the first column, which names the row, is never broken."""
    cells = [[row[column] for column in columns] for row in rows]
    out = console()
    if not cells:
        messages().print(empty)
    elif not out.is_terminal:
        for line in (columns, *cells):
            print("\t".join(_one_line(cell) for cell in line))
    else:
        table = Table(box=None, pad_edge=False, header_style="bold")
        for number, column in enumerate(columns):
            table.add_column(column, overflow="fold", no_wrap=number == 0)
        for line in cells:
            table.add_row(*map(Text, line))
        out.print(table)


def print_facts(facts: Mapping[str, str]) -> None:
    """A line with name and value for each; empty values are omitted. Without a terminal a tab separates them."""
    out = console()
    if not out.is_terminal:
        for name, value in facts.items():
            if value:
                print(f"{name}\t{_one_line(value)}")
        return
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in facts.items():
        if value:
            table.add_row(Text(name, style="bold"), Text(value))
    out.print(table)


def _one_line(text: str) -> str:
    return " ".join(text.split())


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
