"""The best checkpoint by its rule, overfitting by its rule, labels and their confusion."""

from __future__ import annotations

import pytest

from sarto.engine.evaluation.report.best_checkpoint import (
    BEST_RULE,
    LOSS_RULE,
    CheckpointScores,
    best_checkpoint,
    overfit,
)
from sarto.engine.evaluation.report.labels import OTHER, are_labels, confusion


def test_the_highest_score_wins_where_it_is_clearly_higher():
    checkpoints = [
        CheckpointScores("1", 10, 0.5, scores=(0.0, 0.0, 0.1, 0.1)),
        CheckpointScores("2", 20, 0.9, scores=(1.0, 0.9, 1.0, 0.9)),
    ]
    verdict = best_checkpoint(checkpoints, "chrF")
    assert verdict is not None
    assert (verdict.name, verdict.rule) == ("2", BEST_RULE)
    assert "chrF 0.9500 over 4 rows at step 20" in verdict.evidence


def test_within_one_standard_error_the_lower_loss_wins_and_then_the_earlier():
    even = (0.5, 0.6, 0.4, 0.5)
    checkpoints = [
        CheckpointScores("1", 10, 0.7, scores=even),
        CheckpointScores("2", 20, 0.6, scores=(0.6, 0.5, 0.5, 0.4)),
        CheckpointScores("3", 30, 0.8, scores=(0.7, 0.5, 0.4, 0.5)),
    ]
    verdict = best_checkpoint(checkpoints, "chrF")
    assert verdict is not None
    assert verdict.name == "2"
    assert "highest 0.5250 at 3, within one standard error" in verdict.evidence
    without_loss = [CheckpointScores(c.name, c.step, scores=c.scores) for c in checkpoints]
    earliest = best_checkpoint(without_loss, "chrF")
    assert earliest is not None
    assert earliest.name == "1"


def test_rows_without_a_score_somewhere_do_not_count():
    checkpoints = [
        CheckpointScores("1", 10, scores=(1.0, None, 0.2)),
        CheckpointScores("2", 20, scores=(1.0, 1.0, 0.3)),
    ]
    verdict = best_checkpoint(checkpoints, "x")
    assert verdict is not None
    assert "over 2 rows" in verdict.evidence


def test_without_scores_the_lowest_loss_decides_and_without_losses_nothing():
    checkpoints = [CheckpointScores("1", 10, 0.5), CheckpointScores("2", 20, 0.5), CheckpointScores("3", 30)]
    verdict = best_checkpoint(checkpoints, "")
    assert verdict is not None
    assert (verdict.name, verdict.rule) == ("1", LOSS_RULE)
    assert best_checkpoint([CheckpointScores("1", 10)], "") is None


def test_a_risen_validation_loss_is_flagged_with_both_losses():
    rising = [CheckpointScores("1", 10, 0.50, 0.6), CheckpointScores("2", 20, 0.52, 0.2)]
    found = overfit(rising)
    assert found is not None
    assert found.flagged
    assert "0.5000 at step 10, 0.5200 at step 20; training loss 0.6000, then 0.2000" in found.evidence
    falling = overfit([CheckpointScores("1", 10, 0.50), CheckpointScores("2", 20, 0.501)])
    assert falling is not None
    assert not falling.flagged
    assert overfit([CheckpointScores("1", 10, 0.5)]) is None


def test_short_repeated_references_are_labels():
    assert are_labels(["yes", "no"] * 10)
    assert not are_labels(["yes"] * 20)
    assert not are_labels([f"answer {i}" for i in range(20)])
    assert not are_labels(["yes", "no"])
    assert not are_labels(["a long explanation " * 5, "no"] * 10)


def test_confusion_of_hand_computed_answers():
    found = confusion(["a", "a", "a", "b", "b"], ["a", "a ", "b", "b", "what?"])
    assert found.labels == ["a", "b"]
    assert found.counts == [[2, 1, 0], [0, 1, 1]], OTHER
    a, b = found.scores
    assert (a.precision, a.recall, a.f1) == (1.0, pytest.approx(2 / 3), pytest.approx(4 / 5))
    assert (b.precision, b.recall, b.f1) == (0.5, 0.5, 0.5)
    assert found.accuracy == pytest.approx(3 / 5)
    assert found.macro_f1 == pytest.approx((0.8 + 0.5) / 2)
