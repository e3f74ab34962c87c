"""The standard report: base, checkpoints and final model, or any models, on the same rows, without configuration.

Chooses the metrics by the references. It has intervals, paired tests, rows that became worse, confused labels,
overfitting, and the best checkpoint. Pure; `html_page.py` renders it, `files.py` writes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean

from sarto.engine.evaluation.answers import Answer
from sarto.engine.evaluation.metrics.computed import METRICS, json_fields, read_json
from sarto.engine.evaluation.report.best_checkpoint import (
    BestCheckpoint,
    CheckpointScores,
    Overfit,
    best_checkpoint,
    overfit,
)
from sarto.engine.evaluation.report.labels import Confusion, are_labels, confusion
from sarto.engine.evaluation.report.statistics import Comparison, Interval, compare, holm, interval
from sarto.engine.evaluation.rows import EvaluationRow, json_text
from sarto.errors import InvalidArgument
from sarto.plurals import row_count

JSON_SHARE = 0.9
"""Share of references that must be JSON objects for the data to count as JSON."""
LATIN_SHARE = 0.8
ROUGE_WORDS = 5
MOST_FIELDS = 8
"""Most fields of JSON answers with a confusion matrix of their own."""
TITLES = {
    "exact_match": "Exact match", "json_valid": "Valid JSON", "json_field_accuracy": "Field accuracy",
    "chrf": "chrF", "rougeL": "ROUGE-L",
}  # fmt: skip
Scores = dict[str, list[float | None]]
"""Metric → score per row, in the order of rows; None for a row without an answer."""


@dataclass(frozen=True)
class System:
    """A model in the report: its answers in the order of the rows, and the measures of its run. With a `step` it is a
    checkpoint, and a candidate for the best one."""

    name: str
    answers: Sequence[Answer]
    step: int | None = None
    epoch: int | None = None
    validation_loss: float | None = None
    token_accuracy: float | None = None
    training_loss: float | None = None
    pairs: tuple[int, int] | None = None
    """Of validation pairs: in how many it gives the preferred completion the higher reward, and how many there are."""


@dataclass(frozen=True)
class MetricSummary:
    metric: str
    mean: float
    rows: int
    interval: Interval | None


@dataclass(frozen=True)
class SystemSummary:
    name: str
    step: int | None
    epoch: int | None
    validation_loss: float | None
    token_accuracy: float | None
    training_loss: float | None
    answered: int
    failed: int
    cut_off: int
    """Answers that ended at the token limit."""
    metrics: list[MetricSummary]
    fields: dict[str, float]
    """Share of rows with the right value, per field of JSON answers."""
    first_error: str = ""
    preference: MetricSummary | None = None
    """Share of validation pairs whose preferred completion has the higher reward; of models that learned from pairs."""


@dataclass(frozen=True)
class SystemComparison:
    system: str
    baseline: str
    metric: str
    result: Comparison


@dataclass(frozen=True)
class WorseRow:
    line: int
    prompt: str
    reference: str
    before: str
    after: str
    score_before: float
    score_after: float


@dataclass(frozen=True)
class LabelTable:
    """`of` is a field of JSON answers, or empty for whole answers."""

    of: str
    system: str
    confusion: Confusion


@dataclass(frozen=True)
class Report:
    title: str
    dataset: str
    rows: int
    kind: str
    """`json`, `labels`, `text`, or `open` without references."""
    primary_metric: str
    metrics: list[str]
    systems: list[SystemSummary]
    baseline: str
    subject: str
    comparisons: list[SystemComparison]
    worse_rows: list[WorseRow]
    """Rows where the subject scores lower than the baseline, the largest losses first."""
    labels: list[LabelTable]
    best: BestCheckpoint | None
    overfit: Overfit | None
    notes: list[str]
    scores: dict[str, Scores] = field(default_factory=dict, repr=False)
    """Every score of every row by system; in the exported lines, not in the summary."""


def build_report(
    rows: Sequence[EvaluationRow],
    systems: Sequence[System],
    *,
    title: str,
    dataset: str = "",
    baseline: str = "",
    subject: str = "",
    notes: Sequence[str] = (),
    seed: int = 0,
) -> Report:
    """The report on these systems. `baseline` names the system for comparison, by default the first. `subject` names
    the one whose worse rows and labels are shown, by default the last. Raises InvalidArgument for unknown names and for
    answers that do not match the rows."""
    names = [system.name for system in systems]
    baseline, subject = baseline or names[0], subject or names[-1]
    _check(rows, systems, (baseline, subject))
    kind = dataset_kind(rows)
    metrics = _metrics_for(kind, rows)
    scores = {system.name: score_system(metrics, rows, system.answers) for system in systems}
    comparisons = _compare_all(metrics, scores, baseline, seed) if len(systems) > 1 else []
    primary = metrics[0] if metrics else ""
    candidates = [
        _checkpoint(system, scores[system.name].get(primary, [])) for system in systems if system.step is not None
    ]
    return Report(
        title=title,
        dataset=dataset,
        rows=len(rows),
        kind=kind,
        primary_metric=primary,
        metrics=metrics,
        systems=[_summarise(system, rows, scores[system.name], kind, seed) for system in systems],
        baseline=baseline,
        subject=subject,
        comparisons=comparisons,
        worse_rows=_worse_rows(rows, systems, scores, primary, baseline, subject) if baseline != subject else [],
        labels=_label_tables(kind, rows, next(s for s in systems if s.name == subject)),
        best=best_checkpoint(candidates, TITLES.get(primary, primary)) if candidates else None,
        overfit=overfit(candidates),
        notes=[*notes, *_notes(kind, rows, metrics)],
        scores=scores,
    )


def dataset_kind(rows: Sequence[EvaluationRow]) -> str:
    """`json`, `labels`, `text` or `open`, by the references."""
    references = [row.reference for row in rows if row.reference is not None]
    if not references:
        return "open"
    if sum(isinstance(read_json(text), dict) for text in references) >= JSON_SHARE * len(references):
        return "json"
    return "labels" if are_labels(references) else "text"


def score_system(metrics: Sequence[str], rows: Sequence[EvaluationRow], answers: Sequence[Answer]) -> Scores:
    """Scores of one system per metric and row; None for rows without reference or answer, and for texts that are too
    long for the metric."""
    return {name: [_score(name, row, answer) for row, answer in zip(rows, answers, strict=True)] for name in metrics}


def _score(name: str, row: EvaluationRow, answer: Answer) -> float | None:
    if row.reference is None or answer.error:
        return None
    try:
        return METRICS[name](answer.text, row.reference)
    except Exception:  # a text that the metric or a library refuses must not fail the report
        return None


def _check(rows: Sequence[EvaluationRow], systems: Sequence[System], named: tuple[str, str]) -> None:
    names = [system.name for system in systems]
    if not rows:
        raise InvalidArgument("The evaluation dataset has no usable row.")
    if len(set(names)) < len(names):
        raise InvalidArgument(f"Two systems have the same name: {', '.join(names)}.")
    for name in named:
        if name not in names:
            raise InvalidArgument(f'There is no system "{name}"; there are {", ".join(names)}.')
    for system in systems:
        if len(system.answers) != len(rows):
            raise InvalidArgument(f"{system.name} has {len(system.answers)} answers for {len(rows)} rows.")


def _metrics_for(kind: str, rows: Sequence[EvaluationRow]) -> list[str]:
    """The metrics for a kind of data, with the primary metric first."""
    if kind == "json":
        return ["json_field_accuracy", "json_valid", "exact_match"]
    if kind == "labels":
        return ["exact_match"]
    if kind == "open":
        return []
    return ["chrf", "exact_match", *(["rougeL"] if _suits_rouge(rows) else [])]


def _suits_rouge(rows: Sequence[EvaluationRow]) -> bool:
    """Whether the texts are long and in the Latin alphabet: ROUGE counts words of a to z."""
    references = [row.reference for row in rows if row.reference is not None]
    letters = [letter for text in references for letter in text[:2000] if letter.isalpha()]
    latin = sum(letter.isascii() for letter in letters)
    long_enough = fmean(len(text.split()) for text in references) >= ROUGE_WORDS
    return bool(letters) and latin >= LATIN_SHARE * len(letters) and long_enough


def _summarise(system: System, rows: Sequence[EvaluationRow], scores: Scores, kind: str, seed: int) -> SystemSummary:
    errors = [answer.error for answer in system.answers if answer.error]
    metrics = []
    for name, values in scores.items():
        known = [value for value in values if value is not None]
        if known:
            metrics.append(MetricSummary(name, fmean(known), len(known), interval(known, seed=seed)))
    return SystemSummary(
        system.name,
        system.step,
        system.epoch,
        system.validation_loss,
        system.token_accuracy,
        system.training_loss,
        answered=len(rows) - len(errors),
        failed=len(errors),
        cut_off=sum(answer.finish_reason == "MAX_TOKENS" for answer in system.answers),
        metrics=metrics,
        fields=_field_shares(rows, system.answers) if kind == "json" else {},
        first_error=str(errors[0].get("message", "")) if errors else "",
        preference=_preference(*system.pairs) if system.pairs and system.pairs[1] else None,
    )


def _preference(right: int, pairs: int) -> MetricSummary:
    scores = [1.0] * right + [0.0] * (pairs - right)
    return MetricSummary("preference_accuracy", right / pairs, pairs, interval(scores))


def _field_shares(rows: Sequence[EvaluationRow], answers: Sequence[Answer]) -> dict[str, float]:
    """For each field of the references: the share of rows with the right value, among rows with that field."""
    shares: dict[str, list[bool]] = {}
    for row, answer in zip(rows, answers, strict=True):
        if row.reference is None or answer.error:
            continue
        expected = json_fields(row.reference, row.reference)
        for name, is_right in json_fields(answer.text, row.reference).items():
            if name in expected:
                shares.setdefault(name, []).append(is_right)
    return {name: sum(rights) / len(rights) for name, rights in shares.items()}


def _compare_all(metrics: Sequence[str], scores: dict[str, Scores], baseline: str, seed: int) -> list[SystemComparison]:
    """Compare every system with the baseline on their common rows. P-values are adjusted for the number of tests."""
    comparisons = []
    for name, theirs in scores.items():
        for metric in metrics if name != baseline else ():
            before, after = _both(scores[baseline][metric], theirs[metric])
            result = compare(before, after, seed=seed)
            if result is not None:
                comparisons.append(SystemComparison(name, baseline, metric, result))
    adjusted = holm([item.result.p for item in comparisons])
    return [replace(c, result=replace(c.result, adjusted_p=p)) for c, p in zip(comparisons, adjusted, strict=True)]


def _both(before: Sequence[float | None], after: Sequence[float | None]) -> tuple[list[float], list[float]]:
    pairs = [(a, b) for a, b in zip(before, after, strict=True) if a is not None and b is not None]
    return [a for a, _ in pairs], [b for _, b in pairs]


def _worse_rows(
    rows: Sequence[EvaluationRow],
    systems: Sequence[System],
    scores: dict[str, Scores],
    primary: str,
    baseline: str,
    subject: str,
) -> list[WorseRow]:
    if not primary:
        return []
    answers = {system.name: system.answers for system in systems}
    worse_rows = []
    for index, row in enumerate(rows):
        before, after = scores[baseline][primary][index], scores[subject][primary][index]
        if before is None or after is None or after >= before - 1e-9:
            continue
        texts = answers[baseline][index].text, answers[subject][index].text
        worse_rows.append(WorseRow(row.line, row.prompt, row.reference or "", *texts, before, after))
    return sorted(worse_rows, key=lambda row: (row.score_after - row.score_before, row.line))


def _label_tables(kind: str, rows: Sequence[EvaluationRow], subject: System) -> list[LabelTable]:
    """The labels that the subject confuses, for whole answers or for the fields that hold labels."""
    pairs = [
        (row.reference, answer.text)
        for row, answer in zip(rows, subject.answers, strict=True)
        if row.reference is not None and not answer.error
    ]
    if kind == "labels" and pairs:
        return [LabelTable("", subject.name, confusion([a for a, _ in pairs], [b for _, b in pairs]))]
    if kind != "json":
        return []
    objects = [(reference, read_json(text)) for raw, text in pairs if isinstance(reference := read_json(raw), dict)]
    tables = []
    for name in dict.fromkeys(key for reference, _ in objects for key in reference):
        values = [
            (_label(reference[name]), _label(answer[name]) if isinstance(answer, dict) and name in answer else "")
            for reference, answer in objects
            if name in reference
        ]
        if are_labels([expected for expected, _ in values]):
            tables.append(LabelTable(name, subject.name, confusion([a for a, _ in values], [b for _, b in values])))
    return tables[:MOST_FIELDS]


def _label(value: object) -> str:
    return value if isinstance(value, str) else json_text(value)


def _checkpoint(system: System, scores: Sequence[float | None]) -> CheckpointScores:
    return CheckpointScores(system.name, system.step or 0, system.validation_loss, system.training_loss, tuple(scores))


def _notes(kind: str, rows: Sequence[EvaluationRow], metrics: Sequence[str]) -> list[str]:
    notes = []
    missing = sum(row.reference is None for row in rows)
    if kind == "open":
        notes.append("The rows have no references, so answers are not scored; a judge can score them.")
    elif missing:
        notes.append(f"{row_count(missing)} without a reference: not scored.")
    if len(rows) < 30 and kind != "open":
        notes.append(f"Only {row_count(len(rows))}: differences must be large to be more than chance.")
    if kind == "text" and "rougeL" not in metrics:
        notes.append("ROUGE-L is left out: the references are short, or not in the Latin alphabet it counts.")
    return notes
