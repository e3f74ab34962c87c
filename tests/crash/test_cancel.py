"""How soon a running job has ended once its cancel was asked for, also when its run ignores every signal it can."""

from __future__ import annotations

import statistics
import time
from dataclasses import replace
from pathlib import Path

import pytest

from sarto.control.jobs import tuning_jobs
from sarto.control.runs.supervisor import Supervisor
from tests.control.homes import LIMITS, create, make_control, member, read, stand_in_executor, wait_for_end, wait_until

TIMES = 6


@pytest.mark.parametrize("data", ["slow", "deaf"])
def test_a_running_job_ends_within_a_second_of_its_cancel(tmp_path: Path, data: str) -> None:
    control = make_control(tmp_path)
    supervisor = Supervisor(control, stand_in_executor())
    supervisor.start()
    took = []
    for _ in range(TIMES):
        name = create(control, data)
        wait_until(lambda name=name: read(control, name).get("tuningJobState") == "TUNING_JOB_STATE_TUNING")  # type: ignore[misc]
        asked = time.monotonic()
        tuning_jobs.cancel(control, member(control), name)
        assert wait_for_end(control, name)["state"] == "JOB_STATE_CANCELLED"
        took.append(time.monotonic() - asked)
    supervisor.stop()
    control.database.close()
    print(f"\n{data}: median {statistics.median(took):.2f} s, worst {max(took):.2f} s of {TIMES}")
    assert statistics.median(took) < 1.0 and max(took) < 5.0


def test_a_job_over_its_deadline_is_stopped_and_says_so(tmp_path: Path) -> None:
    control = make_control(tmp_path, limits=replace(LIMITS, max_job_seconds=1.0))
    supervisor = Supervisor(control, stand_in_executor())
    supervisor.start()
    job = wait_for_end(control, create(control, "deaf"))
    supervisor.stop()
    control.database.close()
    assert job["state"] == "JOB_STATE_FAILED" and job["error"]["code"] == 4
    assert "max_job_seconds" in job["error"]["message"]


def test_a_run_that_never_gets_through_its_data_is_stopped_and_says_so(tmp_path: Path) -> None:
    control = make_control(tmp_path, limits=replace(LIMITS, max_preparation_seconds=1.0))
    supervisor = Supervisor(control, stand_in_executor())
    supervisor.start()
    job = wait_for_end(control, create(control, "hangs"))
    supervisor.stop()
    control.database.close()
    assert job["state"] == "JOB_STATE_FAILED" and job["error"]["code"] == 4
    assert "max_preparation_seconds" in job["error"]["message"]
