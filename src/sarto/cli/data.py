"""`sarto data …`: what a dataset holds before a second is spent on it: the data report, and the mask proof of a row."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.text import Text

from sarto.cli import output
from sarto.cli.options import DEFAULT_BASE_MODEL, AsJson, BaseModel, client

app = typer.Typer(help="Datasets: check a file, show a row as training sees it.", no_args_is_help=True)
File = Annotated[str, typer.Argument(help="A local JSONL file, or gs://….")]
Validation = Annotated[str, typer.Option("--validation", help="Validation data to check beside it.")]
LEARNED, GIVEN = "black on green3", "dim"


@app.command()
def check(
    context: typer.Context,
    file: File,
    validation: Validation = "",
    model: BaseModel = DEFAULT_BASE_MODEL,
    as_json: AsJson = False,
) -> None:
    """The data report: counts, lengths, faults, duplicates, overlap, forecast, and the values Sarto would choose."""
    with client(context) as api:
        body = {"baseModel": model, "trainingDatasetUri": api.dataset(file)}
        if validation:
            body["validationDatasetUri"] = api.dataset(validation)
        report = api.post(f"/v1/{api.parent}:checkDataset", body)
    if as_json:
        output.print_json(report)
    else:
        output.print_tree(report)


@app.command()
def show(
    context: typer.Context,
    file: File,
    row: Annotated[int, typer.Option("--row", help="Line of the file, counted from 1.", min=1)] = 1,
    model: BaseModel = DEFAULT_BASE_MODEL,
    as_json: AsJson = False,
) -> None:
    """The mask proof: a row as training renders it, token by token; what is learned is on green."""
    with client(context) as api:
        body = {"baseModel": model, "trainingDatasetUri": api.dataset(file), "row": row}
        proof = api.post(f"/v1/{api.parent}:showExample", body)
    if as_json:
        output.print_json(proof)
        return
    out = output.console()
    for rendering in proof["renderings"]:
        out.print(masked(rendering["tokens"]))
        learned = sum(token["loss"] for token in rendering["tokens"])
        out.print(f"{len(rendering['tokens'])} tokens, {learned} of them learned", style="bold")
    out.print(
        "Serving sees the same tokens." if proof["servingMatches"] else "SERVING SEES OTHER TOKENS.", style="bold"
    )


def masked(tokens: list[dict[str, Any]]) -> Text:
    """Token texts one after the other, learned ones on green, each closed by a thin bar."""
    text = Text()
    for token in tokens:
        text.append(token["text"], style=LEARNED if token["loss"] else GIVEN)
        text.append("|", style="bright_black")
    return text
