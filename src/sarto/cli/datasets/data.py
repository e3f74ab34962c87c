"""`sarto data …`: the data report of a dataset before training, and the mask proof of a row."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import typer
from rich.text import Text

from sarto.cli import output
from sarto.cli.datasets.convert import convert
from sarto.cli.datasets.upload import upload
from sarto.cli.options import (
    DEFAULT_BASE_MODEL,
    DEFAULT_METHOD,
    AsJson,
    BaseModel,
    Method,
    TuningModeOption,
    client,
    method_row,
    tuning_mode_name,
)
from sarto.errors import FailedPrecondition

app = typer.Typer(help="Datasets: convert files, check them, show a row as training sees it.", no_args_is_help=True)
app.command()(convert)
File = Annotated[str, typer.Argument(help="A local file or folder, or gs://….")]
MapFile = Annotated[
    str, typer.Option("--map", metavar="FILE", help="Convert with this mapping (`sarto data convert`).")
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Take a guessed mapping without a question.")]
Validation = Annotated[str, typer.Option("--validation", help="Validation data to check beside it.")]
LEARNED, GIVEN = "black on green", "dim"
LEVEL_STYLES = {"error": "bold red", "warning": "yellow", "note": "cyan"}


@app.command()
def check(
    context: typer.Context,
    file: File,
    validation: Validation = "",
    method: Method = DEFAULT_METHOD,
    model: BaseModel = DEFAULT_BASE_MODEL,
    tuning_mode: TuningModeOption = "adapter",
    map_file: MapFile = "",
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """The data report: counts, lengths, faults, duplicates, overlap, forecast, and the automatic values.

    Exit status 1 if a tuning job would refuse the data."""
    with client(context) as api:
        data = upload(context, api, file, validation, map_file=map_file, yes=yes)
        body = {"baseModel": model, "method": method_row(method).client_name, "trainingDatasetUri": data.training}
        if data.validation:
            body["validationDatasetUri"] = data.validation
        if tuning_mode != "adapter":
            body["tuningMode"] = tuning_mode_name(tuning_mode)
        report = api.post(f"/v1/{api.parent}:checkDataset", body)
    if as_json:
        output.print_json(report)
    else:
        print_report(report)
    if not report["isUsable"]:
        raise FailedPrecondition("A tuning job would refuse this data; the faults are listed above.")


@app.command()
def show(
    context: typer.Context,
    file: File,
    row: Annotated[int, typer.Option("--row", help="Line of the file, counted from 1.", min=1)] = 1,
    method: Method = DEFAULT_METHOD,
    model: BaseModel = DEFAULT_BASE_MODEL,
    as_json: AsJson = False,
) -> None:
    """The mask proof: a row as training renders it, token by token; learned tokens are green, and in ⟦ ⟧ where there is
    no colour."""
    with client(context) as api:
        named = {"baseModel": model, "method": method_row(method).client_name}
        body = {**named, "trainingDatasetUri": api.dataset(file), "row": row}
        proof = api.post(f"/v1/{api.parent}:showExample", body)
    if as_json:
        output.print_json(proof)
    else:
        print_proof(proof)


def print_report(report: Mapping[str, Any]) -> None:
    """The main parts of a data report; `--json` prints all of it."""
    output.print_facts(dataset_facts(report["dataset"]) | run_facts(report))
    if "validation" in report:
        output.print_facts({"": "", **dataset_facts(report["validation"])})
    out = output.console()
    for finding in report["findings"]:
        out.print(Text.assemble((finding["level"], LEVEL_STYLES[finding["level"]]), f"  {finding['message']}"))
    for part in ("dataset", "validation"):
        for fault in report.get(part, {}).get("faults", {}).get("shown", ()):
            out.print(Text(f"{part} {fault_text(fault)}"))
    if not report["findings"]:
        out.print("Nothing to object to.", style="green")


def dataset_facts(dataset: Mapping[str, Any]) -> dict[str, str]:
    def counted(name: str) -> str:
        return ", ".join(f"{key} {count:,}" for key, count in (dataset[name] or {}).items())

    pairs = dataset.get("pairs") or {}
    return {
        "Data": dataset["uri"],
        "Rows": f"{dataset['rows']:,}, of which {dataset['usedRows']:,} can be used",
        "Formats": counted("formats"),
        "Turns": counted("roles"),
        "Languages": counted("languages"),
        "Labels": counted("labels"),
        "Completions": f"preferred {pairs['meanChosenTokens']:g} tokens on average, others"
        f" {pairs['meanRejectedTokens']:g}; the preferred one is shorter in {pairs['chosenIsShorter']:.0%} of the rows"
        if pairs
        else "",
    }


def run_facts(report: Mapping[str, Any]) -> dict[str, str]:
    """Lengths, the automatic values with reasons, and the forecast."""
    chosen, forecast, statistics = report["automatic"], report["forecast"], report["statistics"]
    trained = f"adapter size {chosen['rank']}" if chosen["rank"] else "all weights"
    facts = {
        "Input tokens": spread(statistics["inputTokens"]),
        "Output tokens": spread(statistics["outputTokens"]),
        "Would choose": f"{chosen['epochCount']} epochs, batches of {chosen['batchSize']}, "
        f"learning rate {chosen['learningRate']:g}, {trained}"
        + (f", beta {chosen['beta']:g}" if chosen.get("beta") is not None else ""),
        "Because": "; ".join(chosen["reasons"].values()),
        "Forecast": f"{forecast['steps']:,} steps, {forecast['tokens']:,} tokens",
    }
    if "seconds" in forecast:
        memory = f"{forecast['peakMemoryBytes'] / 2**30:.1f} GiB"
        facts["Forecast"] += f", about {output.duration(forecast['seconds'])} and {memory} on the server's machine"
        if runs := forecast["correction"]["runs"]:
            facts["Forecast"] += f", corrected by the last {'job' if runs == 1 else f'{runs} jobs'} there"
    return facts


def spread(distribution: Mapping[str, Any]) -> str:
    low, middle, high = (round(distribution[key]) for key in ("min", "median", "max"))
    return f"{low:,} to {high:,}, half of the rows up to {middle:,}"


def fault_text(fault: Mapping[str, Any]) -> str:
    where = f"line {fault['line']}" + (f", {fault['path']}" if fault["path"] else "")
    return f"{where}: {fault['seen']}; wanted {fault['wanted']}" + (f"; {fault['fix']}" if fault["fix"] else "")


def print_proof(proof: Mapping[str, Any]) -> None:
    out = output.console()
    out.print(Text(proof["raw"], style=GIVEN))
    if "fault" in proof:
        out.print(Text(fault_text(proof["fault"])))
        raise FailedPrecondition("This row cannot be used.")
    for row in proof["training"]:
        out.print(masked(row["tokens"], marks=out.no_color or not out.is_terminal), soft_wrap=True)
        out.print(f"{row['tokenCount']} tokens, {row['learnedCount']} of them learned", style="bold")
    for number, prompt in enumerate(proof["serving"], 1):
        if prompt["isSame"]:
            sent = f"Serving sends the same {len(prompt['tokens'])} tokens in front of reply {number}."
            out.print(sent, style="green")
        else:
            out.print(f"Serving would send other tokens in front of reply {number}:", style="bold red")
            out.print(Text(prompt["text"]))


def masked(tokens: list[dict[str, Any]], *, marks: bool = False) -> Text:
    """Token texts in order, with a thin bar after each; learned ones are green, with `marks` also in ⟦ ⟧."""
    text = Text()
    inside = False
    for token in (*tokens, {"text": "", "learned": False}):
        if marks and token["learned"] is not inside:
            inside = not inside
            text.append("⟦" if inside else "⟧")
        if not token["text"]:
            continue
        for piece in pieces(token["text"]):
            text.append(piece, style=LEARNED if token["learned"] else GIVEN)
        text.append("|", style="bright_black")
    return text


def pieces(text: str) -> Iterator[str]:
    """A token's text with its line ends made visible."""
    for line in text.splitlines(keepends=True):
        yield line.replace("\n", "⏎\n")
