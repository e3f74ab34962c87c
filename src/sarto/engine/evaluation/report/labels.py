"""Answers that are labels: whether the references of a dataset are labels, and the confusion matrix of the answers.

For whole answers and for the fields of JSON answers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

OTHER = "(any other)"
MOST_LABELS = 30
LONGEST_LABEL = 40


@dataclass(frozen=True)
class LabelScore:
    label: str
    rows: int
    precision: float | None
    """None if the label was never predicted."""
    recall: float
    f1: float


@dataclass(frozen=True)
class Confusion:
    """`counts[i][j]`: rows with the reference `labels[i]` and the answer `labels[j]`; in the last column, answers that
    are no label."""

    labels: list[str]
    counts: list[list[int]]
    scores: list[LabelScore]
    accuracy: float
    macro_f1: float


def are_labels(references: Sequence[str]) -> bool:
    """Whether there are at least ten short one-line references, with on average five rows a label, and more than one
    label."""
    distinct = {reference.strip() for reference in references}
    few = 2 <= len(distinct) <= min(MOST_LABELS, len(references) / 5)
    return len(references) >= 10 and few and all(len(x) <= LONGEST_LABEL and "\n" not in x for x in distinct)


def confusion(references: Sequence[str], predictions: Sequence[str]) -> Confusion:
    """The confusion matrix, with labels by frequency; both lists have the rows in the same order. Space around a
    predicted label is ignored."""
    expected = [reference.strip() for reference in references]
    labels = [label for label, _ in sorted(Counter(expected).items(), key=lambda item: (-item[1], item[0]))]
    column = {label: index for index, label in enumerate(labels)}
    counts = [[0] * (len(labels) + 1) for _ in labels]
    for reference, prediction in zip(expected, predictions, strict=True):
        counts[column[reference]][column.get(prediction.strip(), len(labels))] += 1
    scores = [_label_score(label, index, counts) for index, label in enumerate(labels)]
    hits = sum(counts[index][index] for index in range(len(labels)))
    return Confusion(labels, counts, scores, hits / len(expected), sum(s.f1 for s in scores) / len(scores))


def _label_score(label: str, index: int, counts: list[list[int]]) -> LabelScore:
    hits, rows = counts[index][index], sum(counts[index])
    predicted = sum(row[index] for row in counts)
    return LabelScore(label, rows, hits / predicted if predicted else None, hits / rows, 2 * hits / (rows + predicted))
