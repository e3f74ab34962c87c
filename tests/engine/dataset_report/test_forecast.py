"""A forecast is corrected by what this machine really did, as far as it was alike."""

from __future__ import annotations

import pytest

from sarto.contract.base_shape import BaseShape
from sarto.contract.common import TuningParameters
from sarto.contract.tuning_run import PastRun
from sarto.engine.dataset.default_parameters import DataShape, choose
from sarto.engine.dataset_report.forecast import LAST_RUNS, Correction, Machine, forecast

HERE = Machine("cpu", 2, 4e11, 8 << 30, "EPYC", "bfloat16")
BASE = BaseShape(134_000_000, 30, 576, 1536)
DATA = DataShape(200, 120.0, 400)


def took(ratio: float, base: str = "ours", **other: object) -> PastRun:
    run = PastRun(
        base=base, processor="EPYC", threads=2, precision="bfloat16", forecast_seconds=60, tuning_seconds=60 * ratio
    )
    return run.model_copy(update=other)


def seconds(machine: Machine, past: list[PastRun], digest: str = "ours") -> tuple[float, float]:
    """As forecast, and before the correction."""
    chosen = choose(DATA, TuningParameters(rank=8, alpha=16), BASE.parameters)
    found = forecast(DATA, chosen, BASE, machine, past, digest)
    return found["seconds"], found["uncorrected_seconds"]


def test_without_any_finished_job_nothing_is_corrected() -> None:
    assert Correction.of([], "ours", HERE) == Correction(1.0, 0, False)
    corrected, plain = seconds(HERE, [])
    assert corrected == pytest.approx(plain, abs=0.06)


def test_the_last_runs_of_the_same_base_correct_and_one_odd_run_does_not_spoil_them() -> None:
    past = [took(2.0), took(90.0), took(2.2), took(1.8), took(2.0), took(0.1), took(0.1), took(0.1)]
    assert Correction.of(past, "ours", HERE) == Correction(2.0, LAST_RUNS, True)
    corrected, plain = seconds(HERE, past)
    assert corrected == pytest.approx(2 * plain, abs=0.1)


def test_another_base_counts_only_where_there_is_nothing_nearer_and_its_run_was_no_trifle() -> None:
    brief = took(40.0, "other", forecast_seconds=0.1, tuning_seconds=4.0)
    assert Correction.of([brief], "ours", HERE) == Correction(1.0, 0, False)
    assert Correction.of([brief, took(3.0, "other")], "ours", HERE) == Correction(3.0, 1, False)
    assert Correction.of([took(3.0, "other"), took(1.5)], "ours", HERE) == Correction(1.5, 1, True)


@pytest.mark.parametrize("unlike", [{"processor": "Xeon"}, {"threads": 4}, {"precision": "float32"}])
def test_a_run_elsewhere_corrects_nothing(unlike: dict[str, object]) -> None:
    assert Correction.of([took(3.0, **unlike)], "ours", HERE).runs == 0


@pytest.mark.parametrize("wrong", [0.1, 30.0])
def test_a_ceiling_that_is_measured_wrong_is_corrected_after_three_jobs(wrong: float) -> None:
    """The machine says `wrong` times the speed that it has."""
    truth, _ = seconds(HERE, [])
    there = Machine("cpu", 2, wrong * HERE.flops_per_second, 8 << 30, "EPYC", "bfloat16")
    _, plain = seconds(there, [])
    past = [took(1, forecast_seconds=plain * size, tuning_seconds=truth * size) for size in (1.0, 2.5, 0.4)]
    assert seconds(there, [])[0] != pytest.approx(truth, rel=0.5)
    assert seconds(there, past)[0] == pytest.approx(truth, rel=0.02)
