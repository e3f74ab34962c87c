"""The seam of tuning methods: what a method that learns from pairs of rows finds, as preference tuning will."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import pytest
import torch

from sarto.contract.common import BaseWeights
from sarto.engine.tuning.methods import METHODS, method_of
from sarto.engine.tuning.methods.method import Loss, Start
from sarto.engine.tuning.methods.supervised import batch_loss
from sarto.engine.tuning.packing import Batch, TokenizedExample, TokenizedRows, plan, shares, take
from sarto.engine.tuning.session import Session
from sarto.errors import Unimplemented
from tests.engine.tuning.conftest import make_parameters, make_rows, make_spec
from tests.engine.tuning.test_learning import run


@dataclass
class Pairs:
    """Learns as supervised tuning does, but two rows are one example and one unit."""

    seen: list[list[int]] = field(default_factory=list)
    """The lines of each call of `plan`."""
    datasets: list[int] = field(default_factory=list)
    values_at_start: list[torch.Tensor] = field(default_factory=list)

    def begin(self, start: Start) -> tuple[Loss, tuple[TokenizedRows, ...]]:
        self.datasets = [len(each) for each in start.examples]
        self.values_at_start.append(start.adapter.values.clone())
        return partial(batch_loss, start.decoder, start.adapter), start.examples

    def plan(self, rows: Sequence[TokenizedExample], budget: int) -> list[Batch]:
        self.seen.append([row.line for row in rows])
        return plan(rows, budget, per_example=2)

    def units(self, rows: Sequence[TokenizedExample]) -> int:
        return len(rows) // 2


@pytest.fixture
def pairs(monkeypatch: pytest.MonkeyPatch) -> Pairs:
    made = Pairs()
    method = replace(METHODS["supervised"], rows_per_example=2, begin=made.begin, plan=made.plan, units=made.units)
    monkeypatch.setitem(METHODS, "pairs", method)
    return made


def test_a_method_of_pairs_keeps_them_together_and_counts_them_once(
    tiny: BaseWeights, tmp_path: Path, pairs: Pairs
) -> None:
    spec = make_spec(tiny, tmp_path, method="pairs")
    session = Session(spec, make_parameters(epoch_count=1, batch_size=3), make_rows(16), make_rows(4, seed=1))
    assert session.schedule.total_steps == 3  # 8 pairs, 3 a step
    assert pairs.datasets == [16, 4]
    _, progress = run(session, spec)
    training = [lines for lines in pairs.seen if len(lines) != 4 or max(lines) > 4]
    for lines in pairs.seen:
        assert [(first % 2, second - first) for first, second in zip(lines[::2], lines[1::2], strict=True)] == [
            (1, 1)
        ] * (len(lines) // 2)
    assert {line for lines in training for line in lines} == set(range(1, 17))
    steps = [line.step for line in progress if line.step]
    assert [step.supervised_tokens for step in steps] == [3, 3, 2]
    assert [line.evaluation.supervised_tokens for line in progress if line.evaluation][-1] == 2


def test_a_method_sees_the_model_as_the_job_began_it_also_when_the_run_resumes(
    tiny: BaseWeights, tmp_path: Path, pairs: Pairs
) -> None:
    spec = make_spec(tiny, tmp_path, method="pairs")
    session = Session(spec, make_parameters(epoch_count=2), make_rows(8), None)
    run(session, spec)
    assert not torch.equal(session.adapter.values, pairs.values_at_start[0])
    Session(spec, make_parameters(epoch_count=2), make_rows(8), None)
    assert torch.equal(*pairs.values_at_start)


def test_ranks_share_whole_pairs() -> None:
    rows = make_rows(20)
    found = shares(take(rows.examples, range(20)), 3, 2)
    assert sorted(row.line for part in found for row in part) == list(range(1, 21))
    for part in found:
        lines = [row.line for row in part]
        assert all(second == first + 1 and first % 2 for first, second in zip(lines[::2], lines[1::2], strict=True))


def test_a_method_that_is_not_there_is_refused_by_name(tiny: BaseWeights, tmp_path: Path) -> None:
    with pytest.raises(Unimplemented, match=r'no tuning method "guessing".*supervised, preference'):
        Session(make_spec(tiny, tmp_path, method="guessing"), make_parameters(), make_rows(8), None)


def test_a_method_refuses_data_that_it_does_not_read(
    tiny: BaseWeights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(METHODS, "supervised", replace(METHODS["supervised"], data_formats=("auto",)))
    with pytest.raises(Unimplemented, match='"supervised" reads no data of the form "translation"'):
        method_of(make_spec(tiny, tmp_path, data_format="translation"))
