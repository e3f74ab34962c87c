"""The report as files: `report.json`, `report.jsonl` with every row and answer, and `report.html`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import orjson
from pydantic.alias_generators import to_camel

from sarto.contract.run_folder import REPORT_JSON_FILE, REPORT_PAGE_FILE
from sarto.engine.evaluation.report.html_page import report_page
from sarto.engine.evaluation.report.report import Report, System
from sarto.engine.evaluation.rows import EvaluationRow

LINES_FILE = "report.jsonl"


def write_report(folder: Path, report: Report, rows: Sequence[EvaluationRow], systems: Sequence[System]) -> list[Path]:
    """Write all three files, each by one rename, and return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / name for name in (LINES_FILE, REPORT_PAGE_FILE, REPORT_JSON_FILE)]
    with files[0].open("wb") as lines:
        lines.writelines(report_lines(report, rows, systems))
    files[1].write_text(report_page(report), encoding="utf-8")
    files[2].write_bytes(orjson.dumps(report_json(report), option=orjson.OPT_INDENT_2))
    return files


def report_json(report: Report) -> dict[str, Any]:
    """The report as a JSON object, names in camelCase."""
    return {to_camel(item.name): _plain(getattr(report, item.name)) for item in fields(report) if item.name != "scores"}


def report_lines(report: Report, rows: Sequence[EvaluationRow], systems: Sequence[System]) -> Iterator[bytes]:
    """JSON lines: the report without its rows, then one line a row with each system's answer and scores."""
    summary = {name: value for name, value in report_json(report).items() if name != "worseRows"}
    yield orjson.dumps({"type": "report", **summary}) + b"\n"
    for index, row in enumerate(rows):
        answers = {}
        for system in systems:
            answer = system.answers[index]
            reply: dict[str, Any] = {"text": answer.text} if answer.error is None else {"error": answer.error}
            reply["scores"] = {metric: values[index] for metric, values in report.scores[system.name].items()}
            answers[system.name] = reply
        line = {"type": "row", "line": row.line, "fields": row.fields, "answers": answers}
        yield orjson.dumps(line) + b"\n"


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return {to_camel(item.name): _plain(getattr(value, item.name)) for item in fields(value)}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value
