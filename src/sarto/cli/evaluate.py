"""`sarto eval`: the report of a job, or any models compared on any file of rows, as a table, JSON lines and a page."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Annotated, Any

import typer

from sarto.cli import output
from sarto.cli.chat import target
from sarto.cli.client import ApiError, Client
from sarto.cli.options import AsJson, client, resource
from sarto.engine.evaluation.generate import Generate, answer_rows
from sarto.engine.evaluation.report.files import report_json, report_lines
from sarto.engine.evaluation.report.html_page import report_page
from sarto.engine.evaluation.report.report import TITLES, System, build_report
from sarto.engine.evaluation.rows import default_generation_config, read_rows
from sarto.errors import BY_CODE, FailedPrecondition, Internal, InvalidArgument
from sarto.plurals import row_count
from sarto.schema.generation import GenerateContentRequest, GenerateContentResponse

CONCURRENCY = 8
KINDS = {kind.status: kind for kind in BY_CODE.values()}


def evaluate(
    context: typer.Context,
    subject: Annotated[
        list[str],
        typer.Argument(
            metavar="JOB | MODEL…",
            help="A job's id shows its report. With --data: endpoint ids, models/ID, resource names, base models.",
        ),
    ],
    data: Annotated[
        Path | None, typer.Option("--data", help="Local JSONL file of rows that the models answer.", exists=True)
    ] = None,
    limit: Annotated[int | None, typer.Option(help="With --data: rows at most.", min=1)] = None,
    html: Annotated[Path | None, typer.Option(help="Also write the report as a page.", metavar="FILE")] = None,
    jsonl: Annotated[Path | None, typer.Option(help="With --data: every row and answer.", metavar="FILE")] = None,
    as_json: AsJson = False,
) -> None:
    """Show the evaluation of a job, or compare models on a file: the others are compared with the first one."""
    for file in filter(None, (html, jsonl)):  # before models answer, since an error afterwards would lose the answers
        if file.is_dir() or not file.absolute().parent.is_dir():
            raise InvalidArgument(f"{file} cannot be written: name a file in a folder that exists.")
    with client(context) as api:
        if data is not None:
            report = _compare(api, subject, data, limit, html, jsonl)
        elif len(subject) > 1 or jsonl or limit:
            raise InvalidArgument("Several models, --jsonl and --limit need --data, a file of rows.")
        else:
            name = resource(api, "tuningJobs", subject[0])
            report = api.get(f"/v1/{name}/evaluation")
            if html:
                html.write_text(api.text(f"/v1/{name}/evaluation", alt="html"), encoding="utf-8")
    if as_json:
        output.print_json(report)
    else:
        show(report)


def show(report: dict[str, Any]) -> None:
    """One line per model, then the findings."""
    metrics = report["metrics"]
    learned_pairs = any(system.get("preference") for system in report["systems"])
    accuracy = "PREFERRED" if learned_pairs else "TOKENS RIGHT"
    columns = ("MODEL", "LOSS", accuracy, *(TITLES.get(name, name).upper() for name in metrics))
    rows = []
    for system in report["systems"]:
        row = {"MODEL": system["name"], "LOSS": _number(system["validationLoss"])}
        row[accuracy] = _metric(system["preference"]) if learned_pairs else _number(system["tokenAccuracy"])
        by_name = {metric["metric"]: metric for metric in system["metrics"]}
        row |= {TITLES.get(name, name).upper(): _metric(by_name.get(name)) for name in metrics}
        rows.append(row)
    output.print_rows(rows, columns, "Nothing was evaluated.")
    facts = {"Rows": str(report["rows"])}
    for each in report["comparisons"]:
        if each["system"] == report["subject"]:
            result = each["result"]
            words = f"{result['difference']:+.3f}, adjusted p {result['adjustedP']:.4f}"
            facts[f"{TITLES.get(each['metric'], each['metric'])} against {each['baseline']}"] = words
    lines = ", ".join(str(row["line"]) for row in report["worseRows"][:20])
    facts[f"Worse than {report['baseline']}"] = row_count(len(report["worseRows"])) + (
        f": lines {lines}" if lines else ""
    )
    if report["best"]:
        facts["Best"] = f"{report['best']['name']} ({report['best']['evidence']})"
    if report["overfit"]:
        facts["Overfitting"] = f"{'yes' if report['overfit']['flagged'] else 'no'}; {report['overfit']['evidence']}"
    facts["Notes"] = " ".join(report["notes"])
    output.print_facts(facts)


def _compare(
    api: Client, models: list[str], data: Path, limit: int | None, html: Path | None, jsonl: Path | None
) -> dict[str, Any]:
    rows, faults = read_rows(data, limit=limit)
    if not rows:
        raise InvalidArgument(f"{data} holds no usable row" + (f": {faults[0]}" if faults else ""))
    config = default_generation_config(rows)
    systems = []
    for model in dict.fromkeys(models):
        output.messages().print(f"{row_count(len(rows))} to {model} …", style="dim")
        answers = answer_rows(rows, _asking(api, target(api, model)), config=config, concurrency=CONCURRENCY)
        systems.append(System(model, asyncio.run(answers)))
    for system in systems:
        if all(answer.error for answer in system.answers):
            message = (system.answers[0].error or {}).get("message", "")
            raise FailedPrecondition(f"{system.name} answered no row; the first failure: {message}")
    notes = [f"{row_count(len(faults))} could not be read; the first: {faults[0]}"] if faults else []
    report = build_report(rows, systems, title=f"Models on {data.name}", dataset=str(data), notes=notes)
    if html:
        html.write_text(report_page(report), encoding="utf-8")
    if jsonl:
        jsonl.write_bytes(b"".join(report_lines(report, rows, systems)))
    comparison: dict[str, Any] = json.loads(json.dumps(report_json(report)))
    return comparison


def _asking(api: Client, name: str) -> Generate:
    async def generate(request: GenerateContentRequest) -> GenerateContentResponse:
        try:
            answer = await asyncio.to_thread(api.post, f"/v1/{name}:generateContent", request.to_json())
        except ApiError as error:
            raise KINDS.get(error.answered_status, Internal)(error.message) from None
        return GenerateContentResponse.read(answer)

    return generate


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _metric(metric: dict[str, Any] | None) -> str:
    """The mean with its interval."""
    if metric is None:
        return ""
    limits = metric["interval"]
    return f"{metric['mean']:.3f}" + (f" ({limits['low']:.3f} to {limits['high']:.3f})" if limits else "")
