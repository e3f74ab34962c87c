"""The best checkpoint of a run, and whether the run overfitted; each by a fixed rule with its evidence.

Knows scores and losses only. Making a checkpoint the default is the user's decision.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from sarto.plurals import row_count

RISE = 0.01
"""A validation loss that is this share above its lowest counts as risen."""
BEST_RULE = (
    "Highest mean of the primary metric; of all checkpoints within one standard error of it (paired over rows) the one "
    "with the lowest validation loss, then the earliest."
)
LOSS_RULE = "Lowest validation loss, then the earliest."
OVERFIT_RULE = f"The last validation loss is more than {RISE:.0%} above the lowest one."


@dataclass(frozen=True)
class CheckpointScores:
    """A checkpoint with its validation and training loss, and the primary metric of every row. All checkpoints have the
    rows in one order; None for a row without a score."""

    name: str
    step: int
    validation_loss: float | None = None
    training_loss: float | None = None
    scores: tuple[float | None, ...] = ()


@dataclass(frozen=True)
class BestCheckpoint:
    """`name` of the best checkpoint, the rule, and the numbers behind it."""

    name: str
    rule: str
    evidence: str


@dataclass(frozen=True)
class Overfit:
    flagged: bool
    rule: str
    evidence: str


def best_checkpoint(checkpoints: Sequence[CheckpointScores], metric: str) -> BestCheckpoint | None:
    """The best checkpoint; None without scores and losses. `metric` names the primary metric in the evidence."""
    if all(checkpoint.scores for checkpoint in checkpoints) and (rows := _shared_rows(checkpoints)):
        return _by_scores(checkpoints, rows, metric)
    with_loss = [checkpoint for checkpoint in checkpoints if checkpoint.validation_loss is not None]
    if not with_loss:
        return None
    best = min(with_loss, key=_loss_then_step)
    return BestCheckpoint(best.name, LOSS_RULE, f"validation loss {best.validation_loss:.4f} at step {best.step}")


def overfit(checkpoints: Sequence[CheckpointScores]) -> Overfit | None:
    """Whether the last validation loss is above the lowest by more than RISE; None for fewer than two checkpoints with
    a validation loss."""
    known = sorted((c for c in checkpoints if c.validation_loss is not None), key=lambda c: c.step)
    if len(known) < 2:
        return None
    lowest, last = min(known, key=_loss_then_step), known[-1]
    low, end = lowest.validation_loss or 0.0, last.validation_loss or 0.0
    evidence = f"validation loss {low:.4f} at step {lowest.step}, {end:.4f} at step {last.step}"
    if lowest.training_loss is not None and last.training_loss is not None and last is not lowest:
        evidence += f"; training loss {lowest.training_loss:.4f}, then {last.training_loss:.4f}"
    return Overfit(end > low * (1 + RISE), OVERFIT_RULE, evidence)


def _by_scores(checkpoints: Sequence[CheckpointScores], rows: list[int], metric: str) -> BestCheckpoint:
    values = {c.name: [c.scores[row] or 0.0 for row in rows] for c in checkpoints}
    means = {name: math.fsum(scores) / len(rows) for name, scores in values.items()}
    top = max(sorted(checkpoints, key=lambda c: c.step), key=lambda c: means[c.name])
    near = [c for c in checkpoints if _is_within_error(values[top.name], values[c.name])]
    judged_by_loss = all(c.validation_loss is not None for c in near)
    best = min(near, key=_loss_then_step if judged_by_loss else lambda c: (0.0, c.step))
    evidence = f"{metric} {means[best.name]:.4f} over {row_count(len(rows))} at step {best.step}"
    if best is not top:
        evidence += f"; highest {means[top.name]:.4f} at {top.name}, within one standard error"
    if best.validation_loss is not None:
        evidence += f"; validation loss {best.validation_loss:.4f}"
    return BestCheckpoint(best.name, BEST_RULE, evidence)


def _shared_rows(checkpoints: Sequence[CheckpointScores]) -> list[int]:
    """Rows for which every checkpoint has a score."""
    columns = zip(*(checkpoint.scores for checkpoint in checkpoints), strict=True)
    return [index for index, scores in enumerate(columns) if None not in scores]


def _is_within_error(top: list[float], other: list[float]) -> bool:
    """Whether the mean difference is at most its standard error, paired over rows."""
    differences = [a - b for a, b in zip(top, other, strict=True)]
    count, mean = len(differences), math.fsum(differences) / len(differences)
    if count < 2:
        return mean <= 0
    variance = math.fsum((d - mean) ** 2 for d in differences) / (count - 1)
    return mean <= math.sqrt(variance / count)


def _loss_then_step(checkpoint: CheckpointScores) -> tuple[float, int]:
    loss = checkpoint.validation_loss
    return (math.inf if loss is None else loss, checkpoint.step)
