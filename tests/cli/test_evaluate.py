"""`sarto eval`: a job's report, and models compared on a file of rows."""

from __future__ import annotations

import json
from pathlib import Path

from .conftest import Run


def test_the_report_of_a_job_is_a_table_and_a_page(sarto: Run, tickets: Path, tmp_path: Path) -> None:
    made = sarto("tune", str(tickets), "--validation", str(tickets), "--epochs", "1", "--json")
    assert made.returncode == 0, made.stderr
    job = json.loads(made.stdout)["name"].rpartition("/")[2]
    shown = sarto("eval", job, "--html", "report.html")
    assert shown.returncode == 0, shown.stderr
    assert "base" in shown.stdout
    assert "checkpoint 1" in shown.stdout
    assert "Worse than base" in shown.stdout
    assert (tmp_path / "report.html").read_text().startswith("<!doctype html>")


def test_models_are_compared_on_a_file(sarto: Run, tmp_path: Path) -> None:
    rows = [{"prompt": f"say {n}", "reference": str(n)} for n in range(3)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    models = ("gemini-2.0-flash-001", "google/gemini-2.0-flash-001")
    shown = sarto("eval", *models, "--data", "rows.jsonl", "--jsonl", "out.jsonl", "--html", "out.html", "--json")
    assert shown.returncode == 0, shown.stderr
    report = json.loads(shown.stdout)
    assert [system["name"] for system in report["systems"]] == list(models)
    assert report["comparisons"][0]["result"]["same"] == 3
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [line["type"] for line in lines] == ["report", "row", "row", "row"]
    assert (tmp_path / "out.html").exists()


def test_a_model_that_is_not_there_is_an_error(sarto: Run, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"prompt": "hello", "reference": "hi"}\n')
    refused = sarto("eval", "no-such-model", "--data", "rows.jsonl")
    assert refused.returncode != 0
    assert "no-such-model" in refused.stderr
    assert sarto("eval", "1", "2").returncode != 0
