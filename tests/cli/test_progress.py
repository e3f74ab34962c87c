"""Watching a job: what is shown of a job resource, in words, and in how many lines."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from sarto.cli import progress


def job(state: str, phase: str = "", step: int = 0, **throughput: float) -> dict[str, Any]:
    made: dict[str, Any] = {"state": f"JOB_STATE_{state}", "tuningJobMetadata": {"totalStepCount": "40"}}
    if phase:
        made["tuningJobState"] = f"TUNING_JOB_STATE_{phase}"
    made["tuningJobMetadata"] |= {"completedStepCount": str(step), "throughput": throughput}
    return made


def test_a_job_before_its_first_step_has_a_phase_and_no_steps() -> None:
    now = progress.read({"state": "JOB_STATE_PENDING", "tuningJobState": "TUNING_JOB_STATE_WAITING_FOR_QUOTA"})
    assert (now.phase, now.step, now.total_steps, now.facts, now.is_final) == ("waiting for its turn", 0, 0, "", False)


def test_a_running_job_shows_step_loss_speed_and_time_left() -> None:
    now = progress.read(job("RUNNING", "TUNING", 10, loss=0.51234, tokensPerSecond=1234.5, secondsLeft=95.2))
    assert (now.phase, now.step, now.total_steps, now.percent) == ("tuning", 10, 40, 25)
    assert now.facts == "loss 0.512 · 1,234 tokens/s · 1m 35s left"


@pytest.mark.parametrize("state", ["SUCCEEDED", "FAILED", "CANCELLED"])
def test_an_ended_job_shows_its_end_and_not_its_last_phase(state: str) -> None:
    now = progress.read(job(state, "TUNING", 40, loss=0.1, tokensPerSecond=9.0, secondsLeft=3.0))
    assert now.is_final
    assert now.phase == state.lower()
    assert now.facts == "loss 0.100"


def test_without_a_terminal_a_job_is_told_in_few_lines() -> None:
    moments = [job("PENDING"), *(job("RUNNING", "TUNING", step) for step in range(41)), job("SUCCEEDED", step=40)]
    out = io.StringIO()
    ended = progress.watch(map(progress.Change, moments), Console(file=out, width=100))
    assert ended["state"] == "JOB_STATE_SUCCEEDED"
    lines = out.getvalue().splitlines()
    assert len(lines) == 1 + 11 + 1
    assert lines[-1].strip().startswith("succeeded")


def test_on_a_terminal_a_job_is_a_bar() -> None:
    moments = [job("RUNNING", "TUNING", 20, loss=0.5), job("SUCCEEDED", step=40)]
    out = io.StringIO()
    progress.watch(map(progress.Change, moments), Console(file=out, width=100, force_terminal=True))
    assert "step 40/40" in out.getvalue()


def test_notes_fill_the_time_in_which_no_step_is_done() -> None:
    tuning, note = job("RUNNING", "TUNING", 40, loss=0.5), "Evaluation of checkpoint 1 on 40 rows began."
    changes = [progress.Change(tuning), progress.Change(tuning, note), progress.Change(job("SUCCEEDED", step=40))]
    for is_terminal in (False, True):
        out = io.StringIO()
        progress.watch(changes, Console(file=out, width=140, force_terminal=is_terminal))
        assert note in out.getvalue()
