"""The preview of a mapping, and the report of a conversion."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from typing import Any

import orjson
import typer
from rich.console import Console
from rich.text import Text

from sarto.cli.datasets.reading import Choice
from sarto.conversations.conversation import RowFault
from sarto.conversations.convert import mapping as mappings
from sarto.conversations.convert.conversion import SHOWN_ROWS, Report
from sarto.conversations.convert.guess import ignored
from sarto.conversations.convert.shapes import line_of
from sarto.errors import FailedPrecondition

MOST_SHOWN = 300
"""Characters of a text in the preview."""


def print_preview(choice: Choice, out: Console) -> None:
    """The mapping, and the first rows as conversations."""
    mapping = choice.mapping
    out.print(Text(f"{mapping.shape}: {choice.title}", style="bold"))
    for role, names in mapping.columns.items():
        out.print(Text(f"  {role}: {' + '.join(names)}"))
    if left := ignored(mapping, choice.sample.columns):
        out.print(Text(f"  ignored: {', '.join(left)}", style="yellow"))
    convert = line_of(mapping)
    for number, row in enumerate(choice.sample.rows[:SHOWN_ROWS], 1):
        out.print(Text(f"row {number}", style="bold"))
        try:
            line = convert(row)
        except RowFault as fault:
            out.print(Text(f"  {fault.reason}", style="red"))
            continue
        for speaker, text in conversation(orjson.loads(line)):
            cut = text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}… ({len(text):,} characters)"
            out.print(Text(f"  {speaker}: {cut}"))


def conversation(row: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Speaker and text of each turn of a line of the output."""
    if "messages" in row:
        for message in row["messages"]:
            is_unlearned = message.get("weight") == 0
            yield message["role"] + (" (not learned)" if is_unlearned else ""), str(message.get("content") or "")
        return
    if "systemInstruction" in row:
        yield "system", _text(row["systemInstruction"])
    for content in row["contents"]:
        yield content["role"], _text(content)
    for scored in row.get("completions", ()):
        yield "preferred" if scored["score"] else "other", _text(scored["completion"])


def _text(content: Any) -> str:
    if not isinstance(content, dict):
        return str(content)
    return " ".join(
        part["text"] if "text" in part else orjson.dumps(part).decode() for part in content.get("parts", ())
    )


def confirm(choice: Choice, *, is_agreed: bool) -> None:
    """Ask whether a guess is right; without a terminal it must have been agreed to. Raises FailedPrecondition."""
    if choice.is_certain or is_agreed:
        return
    if not sys.stdin.isatty():
        raise FailedPrecondition(
            "The mapping above is a guess. Add --yes to take it, name the columns (--input COLUMN --output COLUMN), or "
            "give a mapping with --map FILE."
        )
    if not typer.confirm("Convert so?", err=True):
        raise FailedPrecondition("Nothing was written.")


def print_report(report: Report, out: Console) -> None:
    """Counts and findings, and the faults that were left out."""
    parts = [f"{report.rows:,} rows: {report.training:,} for training"]
    counts = {"for validation": report.validation, "filtered out": report.filtered,
              "duplicates left out": report.duplicates, "with faults left out": report.faults}  # fmt: skip
    parts += [f"{count:,} {words}" for words, count in counts.items() if count]
    out.print(Text(", ".join(parts)))
    for split, count in report.other_splits.items():
        out.print(Text(f"  left out: {count:,} files of the split {split}", style="yellow"))
    for words, count in report.findings.items():
        out.print(Text(f"  {count:,} {words}", style="yellow"))
    for fault in report.shown:
        out.print(Text(f"  {fault}", style="red"))


def to_json(choice: Choice, report: Report) -> dict[str, Any]:
    return {
        "mapping": mappings.to_json(choice.mapping),
        "isCertain": choice.is_certain,
        "ignoredColumns": ignored(choice.mapping, choice.sample.columns),
        **report.to_json(),
        "examples": [orjson.loads(line) for line in report.examples],
    }
