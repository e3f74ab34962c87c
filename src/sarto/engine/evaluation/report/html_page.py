"""The report as one HTML page without scripts, fonts or links, in light and dark, accessible.

Every text of the user goes through `escape`; a content policy in the page forbids loading and scripts.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from importlib.resources import files

from sarto.engine.evaluation.report.charts import Bar, Curve, curve_chart, interval_chart
from sarto.engine.evaluation.report.labels import OTHER
from sarto.engine.evaluation.report.report import TITLES, LabelTable, Report, SystemComparison, SystemSummary, WorseRow
from sarto.engine.evaluation.report.statistics import Interval
from sarto.plurals import counted, row_count

SHOWN_ROWS = 100
SHOWN_TEXT = 2000
POLICY = "default-src 'none'; style-src 'unsafe-inline'"
METHODS = (
    "Means are over rows with a reference and an answer. Intervals hold the true mean in 95 of 100 such datasets: "
    "Wilson's for scores of 0 and 1, bias-corrected accelerated bootstrap for others. Comparisons are paired, row by "
    "row: McNemar's exact test for scores of 0 and 1, sign-flip permutation for others; p-values are adjusted by "
    "Holm's rule for the number of tests shown."
)


def report_page(report: Report) -> str:
    """A whole HTML document."""
    body = [
        f"<h1>{escape(report.title)}</h1>",
        f"<p>{_facts(report)}</p>",
        _findings(report),
        _systems(report),
        _charts(report),
        _comparisons(report.comparisons),
        _worse(report),
        _fields(report),
        *(_label_table(table) for table in report.labels),
        _list("Notes", [*report.notes, METHODS]),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{escape(report.title)}</title><style>{_style()}</style></head>"
        f"<body><main>{''.join(body)}</main></body></html>\n"
    )


def _style() -> str:
    return files("sarto.engine.evaluation.report").joinpath("page.css").read_text(encoding="utf-8")


def _facts(report: Report) -> str:
    kinds = {
        "json": "JSON records", "labels": "labels", "text": "text", "open": "answers without references",
    }  # fmt: skip
    facts = [row_count(report.rows), kinds[report.kind]]
    return escape(" · ".join([*facts, *([report.dataset] if report.dataset else [])]))


def _findings(report: Report) -> str:
    """The main result, and the weak points, in a few sentences."""
    lines = []
    for item in report.comparisons:
        if item.system == report.subject and item.metric == report.primary_metric:
            lines.append(_verdict(item))
    if report.baseline != report.subject and report.primary_metric:
        count = counted(len(report.worse_rows), "row is", "rows are")
        lines.append(f"{count} worse with {report.subject} than with {report.baseline}.")
    if report.best:
        lines.append(f"Best checkpoint: {report.best.name} ({report.best.evidence}). Rule: {report.best.rule}")
    if report.overfit:
        say = "The run overfits" if report.overfit.flagged else "No sign of overfitting"
        lines.append(f"{say}: {report.overfit.evidence}. Rule: {report.overfit.rule}")
    return _list("Findings", lines)


def _verdict(item: SystemComparison) -> str:
    result = item.result
    p = result.p if result.adjusted_p is None else result.adjusted_p
    way = "better" if result.difference > 0 else "worse"
    words = f"is {way} than" if p < 0.05 else "does not differ beyond chance from"
    limits = f" [{_points(result.interval.low)}, {_points(result.interval.high)}]" if result.interval else ""
    return (
        f"{item.system} {words} {item.baseline} in {_title(item.metric)}: {_points(result.difference)} points{limits}, "
        f"p = {_p(p)}; {row_count(result.better)} better, {result.worse} worse, {result.same} the same."
    )


def _systems(report: Report) -> str:
    learned_pairs = any(system.preference for system in report.systems)
    accuracy = "Preference accuracy" if learned_pairs else "Token accuracy"
    head = ["Model", "Step", "Validation loss", accuracy, *map(_title, report.metrics), "Answered", "Cut off"]
    rows = [_system_row(system, report.metrics) for system in report.systems]
    errors = [
        f"{s.name}: {row_count(s.failed)} without answer; first error: {s.first_error}"
        for s in report.systems
        if s.failed
    ]
    return _table("Models", head, rows) + _list("Errors", errors)


def _system_row(system: SystemSummary, metrics: Sequence[str]) -> list[str]:
    by_metric = {summary.metric: summary for summary in system.metrics}
    cells = [
        f"{_percent(by_metric[name].mean)} {_limits(by_metric[name].interval)}" if name in by_metric else "-"
        for name in metrics
    ]
    loss = "-" if system.validation_loss is None else f"{system.validation_loss:.4f}"
    accuracy = "-" if system.token_accuracy is None else _percent(system.token_accuracy)
    if system.preference is not None:
        accuracy = f"{_percent(system.preference.mean)} {_limits(system.preference.interval)}"
    step = "-" if system.step is None else str(system.step)
    return [system.name, step, loss, accuracy, *cells, str(system.answered), str(system.cut_off)]


def _charts(report: Report) -> str:
    drawn = []
    for name in report.metrics:
        bars = [
            Bar(system.name, summary.mean, *((summary.interval.low, summary.interval.high) if summary.interval else ()))
            for system in report.systems
            for summary in system.metrics
            if summary.metric == name
        ]
        if bars:
            drawn.append(_figure(_title(name), interval_chart(f"{_title(name)} of each model, with intervals", bars)))
    points = [s for s in report.systems if s.step is not None]
    validation = [(float(s.step or 0), s.validation_loss) for s in points if s.validation_loss is not None]
    training = [(float(s.step or 0), s.training_loss) for s in points if s.training_loss is not None]
    if len(validation) > 1:
        curves = [
            Curve("validation", "curve", validation),
            *([Curve("training", "curve-2", training)] if training else []),
        ]
        drawn.append(_figure("Loss", curve_chart("Loss over training steps", curves)))
    return "".join(drawn)


def _comparisons(comparisons: Sequence[SystemComparison]) -> str:
    if not comparisons:
        return ""
    head = ["Model", "Against", "Metric", "Difference", "Better", "Worse", "Same", "p", "p adjusted", "Test"]
    rows = []
    for item in comparisons:
        result = item.result
        difference = f"{_points(result.difference)} {_limits(result.interval, points=True)}"
        adjusted = "-" if result.adjusted_p is None else _p(result.adjusted_p)
        counts = [str(result.better), str(result.worse), str(result.same)]
        rows.append(
            [
                item.system,
                item.baseline,
                _title(item.metric),
                difference,
                *counts,
                _p(result.p),
                adjusted,
                result.method,
            ]
        )
    return _table("Comparisons, in points of 100", head, rows)


def _worse(report: Report) -> str:
    if not report.worse_rows:
        return ""
    shown = report.worse_rows[:SHOWN_ROWS]
    more = len(report.worse_rows) - len(shown)
    note = f"<p>{more} more are in the exported rows.</p>" if more else ""
    title = f"Rows where {report.subject} is worse than {report.baseline}"
    rows = "".join(_worse_row(row, report) for row in shown)
    return f"<section><h2>{escape(title)} ({len(report.worse_rows)})</h2>{rows}{note}</section>"


def _worse_row(row: WorseRow, report: Report) -> str:
    summary = f"Line {row.line}: {_percent(row.score_before)} → {_percent(row.score_after)}"
    parts = [
        ("Prompt", row.prompt),
        ("Reference", row.reference),
        (report.baseline, row.before),
        (report.subject, row.after),
    ]
    texts = "".join(f"<dt>{escape(name)}</dt><dd><pre>{escape(_cut(text))}</pre></dd>" for name, text in parts)
    return f"<details><summary>{escape(summary)}</summary><dl>{texts}</dl></details>"


def _fields(report: Report) -> str:
    names = list(dict.fromkeys(name for system in report.systems for name in system.fields))
    if not names:
        return ""
    rows = [[name, *(_percent(s.fields[name]) if name in s.fields else "-" for s in report.systems)] for name in names]
    return _table("Fields with the right value", ["Field", *(s.name for s in report.systems)], rows)


def _label_table(table: LabelTable) -> str:
    confusion = table.confusion
    rows = [
        [label, *map(str, counts), _percent(score.recall), _percent(score.f1)]
        for label, counts, score in zip(confusion.labels, confusion.counts, confusion.scores, strict=True)
    ]
    of = f'of field "{table.of}"' if table.of else "of whole answers"
    caption = (
        f"Labels {of}, {table.system}: rows are references, columns answers; accuracy {_percent(confusion.accuracy)}, "
        f"macro F1 {_percent(confusion.macro_f1)}"
    )
    return _table(caption, ["Reference", *confusion.labels, OTHER, "Recall", "F1"], rows)


def _table(caption: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose first column names its row. A wide table can be scrolled, also by the keyboard."""
    columns = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in head)
    lines = "".join(
        f'<tr><th scope="row">{escape(_cut(row[0], 200))}</th>'
        + "".join(f"<td>{escape(cell)}</td>" for cell in row[1:])
        + "</tr>"
        for row in rows
    )
    inside = f"<caption>{escape(caption)}</caption><thead><tr>{columns}</tr></thead><tbody>{lines}</tbody>"
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(caption)}"><table>{inside}</table></div>'
    )


def _list(title: str, lines: Sequence[str]) -> str:
    if not lines:
        return ""
    items = "".join(f"<li>{escape(_cut(line))}</li>" for line in lines)
    return f"<section><h2>{escape(title)}</h2><ul>{items}</ul></section>"


def _figure(caption: str, drawing: str) -> str:
    return f"<figure><figcaption>{escape(caption)}</figcaption>{drawing}</figure>"


def _title(metric: str) -> str:
    return TITLES.get(metric, metric)


def _cut(text: str, limit: int = SHOWN_TEXT) -> str:
    return text if len(text) <= limit else f"{text[:limit]}… ({len(text) - limit} more characters)"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _points(share: float) -> str:
    return f"{100 * share:+.1f}"


def _limits(interval: Interval | None, *, points: bool = False) -> str:
    if interval is None:
        return ""
    low, high = 100 * interval.low, 100 * interval.high
    return f"[{low:+.1f}, {high:+.1f}]" if points else f"[{low:.1f}, {high:.1f}]"


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"
