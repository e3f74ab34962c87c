"""The standard report: what it chooses, what it finds in planted data, and what its files look like."""

from __future__ import annotations

import json
import random
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path

import pytest

from sarto.contract.run_folder import REPORT_JSON_FILE, REPORT_PAGE_FILE
from sarto.engine.evaluation.answers import Answer
from sarto.engine.evaluation.report.files import LINES_FILE, write_report
from sarto.engine.evaluation.report.html_page import report_page
from sarto.engine.evaluation.report.report import Report, System, build_report, dataset_kind
from sarto.engine.evaluation.rows import EvaluationRow
from sarto.errors import InvalidArgument
from tests.engine.evaluation.making import make_answers, make_rows

DESKS = ["RTN", "FIX", "SHP", "BIL"]
WORSE = frozenset({4, 17, 33, 40, 58})
"""Lines that the planted tuned model gets wrong although the base gets them right."""


def planted() -> tuple[list[EvaluationRow], list[System]]:
    """60 rows of labels: the base knows half, the tuned model all but the planted lines."""
    rows = make_rows([(f"Ticket {line}", ["refund", "repair", "delivery"][line % 3]) for line in range(1, 61)])
    base = [row.reference if row.line % 2 == 0 or row.line in WORSE else "dunno" for row in rows]
    tuned = ["refuse" if row.line in WORSE else row.reference for row in rows]
    return rows, [
        System("base", make_answers(rows, [text or "" for text in base])),
        System("tuned", make_answers(rows, [text or "" for text in tuned]), step=20, validation_loss=0.4),
    ]


def corrupted(row: EvaluationRow, share: float, chance: random.Random) -> str:
    record = json.loads(row.reference or "")
    if chance.random() < share:
        record["desk"] = chance.choice(DESKS)
    text = json.dumps(record)
    return text if chance.random() > share / 2 else f"Sure! {text}"


def tickets() -> tuple[list[EvaluationRow], list[System]]:
    """Records with fields of few values and one of many, an untuned model and three checkpoints."""
    chance = random.Random(0)
    pick = chance.choice
    records = [
        {"desk": pick(DESKS), "lang": pick(["en", "de"]), "urgency": pick([1, 2, 3]), "order": str(10_000 + number)}
        for number in range(150)
    ]
    rows = make_rows([(f"Ticket {number}", json.dumps(record)) for number, record in enumerate(records)])
    losses = [(0.8, 1.0, 1.1), (0.2, 0.6, 0.5), (0.25, 0.66, 0.2)]
    systems = [System("base", make_answers(rows, [corrupted(row, 1.0, chance) for row in rows]))]
    for number, (share, validation, training) in enumerate(losses, 1):
        answers = make_answers(rows, [corrupted(row, share, chance) for row in rows])
        systems.append(System(f"checkpoint {number}", answers, number * 10, number, validation, 0.9, training))
    return rows, systems


def make(rows: list[EvaluationRow], systems: list[System]) -> Report:
    return build_report(rows, systems, title="Tickets", dataset="gs://b/validation.jsonl")


def test_the_planted_rows_that_became_worse_are_found_and_listed():
    rows, systems = planted()
    report = make(rows, systems)
    assert report.kind == "labels"
    assert {row.line for row in report.worse_rows} == WORSE
    first = report.worse_rows[0]
    assert (first.score_before, first.score_after, first.after) == (1.0, 0.0, "refuse")
    assert first.prompt == f"Ticket {first.line}"


def test_the_comparison_counts_tests_and_bounds_the_difference():
    rows, systems = planted()
    comparison = make(rows, systems).comparisons[0]
    known = {line for line in range(1, 61) if line % 2 == 0} | WORSE
    result = comparison.result
    assert (result.better, result.worse) == (60 - len(known), len(WORSE))
    assert result.method == "McNemar, exact"
    assert result.p < 0.001
    assert result.interval is not None
    assert 0 < result.interval.low < result.difference < result.interval.high


def test_labels_taken_for_others_are_counted():
    rows, systems = planted()
    table = make(rows, systems).labels[0].confusion
    assert sorted(table.labels) == ["delivery", "refund", "repair"]
    assert sum(row[-1] for row in table.counts) == len(WORSE)
    assert table.accuracy == pytest.approx(55 / 60)


def test_json_data_gets_field_accuracy_and_a_table_for_each_label_field():
    rows, systems = tickets()
    report = make(rows, systems)
    assert (report.kind, report.primary_metric) == ("json", "json_field_accuracy")
    assert report.metrics == ["json_field_accuracy", "json_valid", "exact_match"]
    assert {table.of for table in report.labels} == {"desk", "urgency", "lang"}
    last = report.systems[-1]
    assert set(last.fields) == {"desk", "urgency", "order", "lang"}
    valid = next(summary.mean for summary in last.metrics if summary.metric == "json_valid")
    assert last.fields["lang"] == pytest.approx(valid)
    assert last.fields["desk"] < valid


def test_the_best_checkpoint_and_overfitting_come_with_evidence():
    rows, systems = tickets()
    report = make(rows, systems)
    assert report.best is not None
    assert report.best.name == "checkpoint 2"
    assert "one standard error" in report.best.rule
    assert report.overfit is not None
    assert report.overfit.flagged
    assert "0.6000 at step 20, 0.6600 at step 30" in report.overfit.evidence


def test_every_p_value_is_adjusted_for_the_number_of_tests():
    rows, systems = tickets()
    report = make(rows, systems)
    assert len(report.comparisons) == 9
    assert all((c.result.adjusted_p or 0) >= c.result.p for c in report.comparisons)


@pytest.mark.parametrize(
    ("references", "kind", "metrics"),
    [
        (["a sentence with quite a few words in it", "another sentence of such a kind here"], "text",
         ["chrf", "exact_match", "rougeL"]),
        (["короткий ответ на этот вопрос здесь", "ещё один такой ответ на вопрос"], "text", ["chrf", "exact_match"]),
        (["short", "texts"], "text", ["chrf", "exact_match"]),
        (['{"a": 1}', '{"a": 2}'], "json", ["json_field_accuracy", "json_valid", "exact_match"]),
        (["yes", "no"] * 10, "labels", ["exact_match"]),
    ],
)  # fmt: skip
def test_metrics_are_chosen_by_the_references(references: list[str], kind: str, metrics: list[str]):
    rows = make_rows([("Q", reference) for reference in references])
    report = make(rows, [System("base", make_answers(rows, references))])
    assert dataset_kind(rows) == kind
    assert report.metrics == metrics
    assert all(summary.mean == pytest.approx(1.0) for summary in report.systems[0].metrics)
    assert report.comparisons == []


def test_rows_that_failed_are_counted_left_out_and_named():
    rows, systems = planted()
    answers = [Answer(a.line, error={"code": 14, "message": "away"}) if a.line <= 10 else a for a in systems[1].answers]
    report = make(rows, [systems[0], System("tuned", answers)])
    assert (report.systems[1].failed, report.systems[1].first_error) == (10, "away")
    assert report.comparisons[0].result.rows == 50
    assert {row.line for row in report.worse_rows} == WORSE - {4}
    assert "10 rows without answer; first error: away" in report_page(report)


def test_without_references_there_are_losses_and_a_note():
    rows = [EvaluationRow(1, make_rows([("Q", "A")])[0].request, "Q")]
    answers = [Answer(1, "hello")]
    systems = [System("c1", answers, 1, 1, 0.9), System("c2", answers, 2, 2, 0.5)]
    report = make(rows, systems)
    assert (report.kind, report.metrics, report.worse_rows) == ("open", [], [])
    assert report.best is not None
    assert report.best.name == "c2"
    assert "no references" in report.notes[0]
    assert "<svg" in report_page(report)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"baseline": "x"}, 'There is no system "x"; there are base, tuned'), ({"subject": "y"}, '"y"')],
)
def test_names_that_do_not_fit_are_refused(change: dict[str, str], message: str):
    rows, systems = planted()
    with pytest.raises(InvalidArgument, match=message):
        build_report(rows, systems, title="t", **change)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument, match="same name"):
        build_report(rows, [systems[0], systems[0]], title="t")
    with pytest.raises(InvalidArgument, match="3 answers for 60 rows"):
        build_report(rows, [System("base", systems[0].answers[:3])], title="t")


class _Page(HTMLParser):
    """What a page would load, run, or leave open."""

    VOID = {"meta", "br"}

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loads += [f"{tag} {name}" for name, _ in attrs if name in ("src", "href") or name.startswith("on")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_stands_alone_and_shows_texts_as_texts():
    rows, systems = planted()
    evil = '<script>alert(1)</script>" onload="x'
    answers = [Answer(a.line, evil) if a.line in WORSE else a for a in systems[1].answers]
    report = build_report(rows, [systems[0], System(evil, answers, 20)], title=evil, dataset=evil)
    page = report_page(report)
    parsed = _Page()
    parsed.feed(page)
    assert parsed.open == []
    assert parsed.loads == []
    assert "script" not in parsed.tags
    assert "default-src 'none'" in page
    assert "prefers-color-scheme: dark" in page
    assert "url(" not in page
    assert "@import" not in page
    assert '<html lang="en">' in page
    assert page.count("<details>") == len(WORSE)


def test_drawings_are_well_formed_and_titled():
    rows, systems = tickets()
    page = report_page(make(rows, systems))
    drawings = ["<svg" + piece.split("</svg>")[0] + "</svg>" for piece in page.split("<svg")[1:]]
    assert len(drawings) == 4, "three metrics and the losses"
    for drawing in drawings:
        root = ET.fromstring(drawing)
        assert root.find("title") is not None


def test_the_files_hold_every_row_and_answer(tmp_path: Path):
    rows, systems = planted()
    report = make(rows, systems)
    files = write_report(tmp_path, report, rows, systems)
    assert {file.name for file in files} == {REPORT_JSON_FILE, LINES_FILE, REPORT_PAGE_FILE}
    whole = json.loads((tmp_path / REPORT_JSON_FILE).read_bytes())
    assert whole["primaryMetric"] == "exact_match"
    assert len(whole["worseRows"]) == len(WORSE)
    assert whole["comparisons"][0]["result"]["interval"]["method"] == "Newcombe, paired"
    head, *lines = map(json.loads, (tmp_path / LINES_FILE).read_text(encoding="utf-8").splitlines())
    assert head["type"] == "report"
    assert len(lines) == 60
    assert lines[3]["answers"]["tuned"] == {"text": "refuse", "scores": {"exact_match": 0.0}}
    assert lines[3]["answers"]["base"]["scores"] == {"exact_match": 1.0}


def test_the_same_answers_give_the_same_report():
    rows, systems = tickets()
    assert make(rows, systems) == make(rows, systems)


@pytest.mark.parametrize(
    "texts", [[""] * 12, ["\0\ufffd" * 5] * 12, ["word " * 20_001] * 12, ["[" * 90_000] * 12, ["🙂‍↔️ é e\u0301"] * 12]
)
def test_hostile_answers_break_nothing(texts: list[str]):
    for references in (["a wanted text of many words " * 3] * 12, ['{"a": {"b": [1]}}'] * 12, ["yes", "no"] * 6):
        rows = make_rows([("Q", reference) for reference in references])
        report = make(rows, [System("base", make_answers(rows, references)), System("x", make_answers(rows, texts))])
        assert len(report.worse_rows) == 12
        assert len(report_page(report)) < 1_000_000
