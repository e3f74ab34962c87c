"""`sarto data convert`: files of many formats into JSON lines of a job, with a preview of the mapping."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sarto.cli import output
from sarto.cli.datasets.preview import confirm, print_preview, print_report, to_json
from sarto.cli.datasets.produce import produce, save
from sarto.cli.datasets.reading import Choice, Given, chosen, filters, read_map
from sarto.conversations.convert.conversion import Report, refuse_unusable
from sarto.conversations.convert.conversion import convert as convert_rows
from sarto.conversations.convert.files import SourceFile, find_files
from sarto.conversations.convert.mapping import ColumnMapping

Limit = Annotated[list[str] | None, typer.Option(metavar="COLUMN=N", help="Repeatable.")]


def convert(
    context: typer.Context,
    sources: Annotated[list[str], typer.Argument(metavar="SOURCE...", help="Files, or folders of a dataset.")],
    to: Annotated[
        str, typer.Option("--to", metavar="OUT.jsonl", help="Without it: a preview, nothing is written.")
    ] = "",
    validation_to: Annotated[str, typer.Option(metavar="FILE", help="Default: OUT.validation.jsonl.")] = "",
    map_file: Annotated[str, typer.Option("--map", metavar="FILE", help="A mapping: TOML, JSON, or gs://….")] = "",
    save_map: Annotated[str, typer.Option(metavar="FILE", help="Write the mapping: .toml or .json.")] = "",
    input_: Annotated[
        list[str] | None, typer.Option("--input", metavar="COLUMN", help="Prompt; several are joined.")
    ] = None,
    output_: Annotated[str, typer.Option("--output", metavar="COLUMN", help="Reply to learn.")] = "",
    messages: Annotated[str, typer.Option(metavar="COLUMN", help="A list of messages or turns.")] = "",
    role: Annotated[str, typer.Option(metavar="KEY", help="With --messages: the speaker's key.")] = "",
    text: Annotated[str, typer.Option(metavar="KEY", help="With --messages: the text's key.")] = "",
    chosen_: Annotated[str, typer.Option("--chosen", metavar="COLUMN", help="Preferred reply.")] = "",
    rejected: Annotated[str, typer.Option(metavar="COLUMN", help="The other reply.")] = "",
    system: Annotated[str, typer.Option(metavar="COLUMN", help="System text of a row.")] = "",
    tools: Annotated[str, typer.Option(metavar="COLUMN", help="Tool declarations of a row.")] = "",
    system_text: Annotated[str, typer.Option(metavar="TEXT", help="System text for rows without one.")] = "",
    where: Annotated[
        list[str] | None, typer.Option(metavar="COLUMN=VALUE", help="Take these rows only. Repeatable.")
    ] = None,
    non_empty: Annotated[list[str] | None, typer.Option(metavar="COLUMN", help="Take rows with text there.")] = None,
    min_chars: Limit = None,
    max_chars: Limit = None,
    split: Annotated[str, typer.Option(metavar="NAME", help="Split of a dataset folder; default: train.")] = "",
    validation_share: Annotated[float, typer.Option(metavar="SHARE", help="Share of rows for validation.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Seed of the split.")] = 0,
    deduplicate: Annotated[bool, typer.Option("--deduplicate", help="Take equal rows once.")] = False,
    skip_faults: Annotated[bool, typer.Option("--skip-faults", help="Leave rows out that cannot be used.")] = False,
    encoding: Annotated[str, typer.Option(metavar="NAME", help="Encoding of text files; default: utf-8.")] = "",
    delimiter: Annotated[str, typer.Option(metavar="CHARACTER", help="Of CSV files; default: guessed.")] = "",
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Take a guessed mapping without a question.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Convert CSV, TSV, JSON, Parquet, Arrow (each also as .gz or .zst) and dataset folders to JSON lines.

    The mapping is guessed from the columns and shown with the first rows. Works without a server."""
    given = Given(
        input=tuple(input_ or ()), output=output_, messages=messages, role=role, text=text, chosen=chosen_,
        rejected=rejected, system=system, tools=tools, system_text=system_text,
        filters=filters(where or [], non_empty or [], min_chars or [], max_chars or []), split=split,
        validation_share=validation_share, seed=seed, deduplicate=deduplicate, skip_faults=skip_faults,
        encoding=encoding, delimiter=delimiter,
    )  # fmt: skip
    mapping = read_map(context, map_file) if map_file else None
    choice, files = choose(sources, given, mapping, shown=not as_json)
    if to:
        confirm(choice, is_agreed=yes)
    report = run(files, choice, to, validation_to)
    if as_json:
        output.print_json(to_json(choice, report))
    else:
        print_report(report, output.console())
    refuse_unusable(report, choice.mapping)
    if save_map:
        save(choice.mapping, Path(save_map))


def choose(
    sources: list[str], given: Given, mapping: ColumnMapping | None, *, shown: bool
) -> tuple[Choice, list[SourceFile]]:
    """The mapping of the sources, printed with a preview if `shown`, and their files."""
    files = find_files(sources)
    choice = chosen(files, given, mapping)
    if shown:
        print_preview(choice, output.console())
    return choice, files


def run(files: list[SourceFile], choice: Choice, to: str, validation_to: str) -> Report:
    """Convert into files; without one to write, count only."""
    if not to:
        return convert_rows(files, choice.mapping)
    return produce(files, choice.mapping, Path(to), Path(validation_to or Path(to).with_suffix(".validation.jsonl")))
