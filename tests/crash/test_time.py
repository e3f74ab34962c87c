"""A clock that jumps by an hour under a worker, and a run that hears nothing: neither changes what becomes of a job."""

from __future__ import annotations

import os
import signal
import statistics
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from sarto.control.aip import times
from sarto.control.context import Control
from sarto.control.jobs import events, tuning_jobs
from sarto.control.runs.supervisor import Supervisor
from tests.control.homes import (
    create,
    make_control,
    member,
    open_control,
    read,
    stand_in_executor,
    wait_for_end,
    wait_until,
)
from tests.crash.test_storm import run_processes
from tests.crash.worlds import LIMITS, start

TIMES = 5
PATIENT = replace(LIMITS, lease_seconds=8.0)
"""A busy machine alone lets no lease run out here."""


def jumping(seconds: float) -> None:
    """From now on this process takes the time for another; a process has one clock, so it is replaced here."""
    real = time.time
    time.time = lambda: real() + seconds


def supervise_by_a_clock(home: Path, url: str, seconds: float) -> None:
    jumping(seconds)
    Supervisor(open_control(home, url, PATIENT), stand_in_executor()).start()
    threading.Event().wait()


@pytest.fixture
def shared(tmp_path: Path, postgres_url: str) -> Iterator[Control]:
    made = make_control(tmp_path, postgres_url, PATIENT)
    yield made
    made.database.close()


@pytest.mark.parametrize("jump", [3600.0, -3600.0])
def test_a_worker_whose_clock_is_an_hour_off_takes_nothing_over_and_loses_nothing(shared: Control, jump: float) -> None:
    """Leases go by the database's clock: each keeps what it holds, whatever the other takes the time for."""
    right = start(supervise_by_a_clock, shared.home, shared.database.url, 0.0)
    names = [create(shared, "slow", spec={"hyperParameters": {"epochCount": 1}}) for _ in range(2)]
    wait_until(lambda: len(run_processes(shared.home)) == 2)
    wrong = start(supervise_by_a_clock, shared.home, shared.database.url, jump)
    names += [create(shared, "slow", spec={"hyperParameters": {"epochCount": 1}}) for _ in range(2)]
    for name in names:
        job = wait_for_end(shared, name)
        assert job["state"] == "JOB_STATE_SUCCEEDED", job.get("error")
        told = [event["kind"] for event in events.list_events(shared, member(shared), name)[0]]
        assert told.count("started") == 1 and "lost" not in told, told
        assert abs(times.seconds(job["endTime"]) - time.time()) < 60.0, "times in answers are the database's"
    for child in (right, wrong):
        child.kill()
        child.join()


def test_a_jump_in_the_middle_of_a_job_ends_no_job_and_no_deadline(tmp_path: Path, postgres_url: str) -> None:
    control = make_control(tmp_path, postgres_url, replace(PATIENT, max_job_seconds=600.0))
    supervisor = Supervisor(control, stand_in_executor())
    supervisor.start()
    name = create(control, "slow", spec={"hyperParameters": {"epochCount": 1}})
    wait_until(lambda: bool(run_processes(control.home)))
    real = time.time
    try:
        jumping(3600.0)
        job = wait_for_end(control, name)
    finally:
        time.time = real
    supervisor.stop()
    told = [event["kind"] for event in events.list_events(control, member(control), name)[0]]
    control.database.close()
    assert job["state"] == "JOB_STATE_SUCCEEDED" and told.count("started") == 1


def test_a_run_that_is_stopped_and_hears_no_signal_is_cancelled_within_five_seconds(tmp_path: Path) -> None:
    """As one that hangs in native code: Python runs no handler, and the process is in no state to answer."""
    control = make_control(tmp_path)
    supervisor = Supervisor(control, stand_in_executor())
    supervisor.start()
    took = []
    for _ in range(TIMES):
        name = create(control, "slow")
        wait_until(lambda name=name: read(control, name).get("tuningJobState") == "TUNING_JOB_STATE_TUNING")  # type: ignore[misc]
        (process,) = run_processes(control.home)
        os.kill(process, signal.SIGSTOP)
        asked = time.monotonic()
        tuning_jobs.cancel(control, member(control), name)
        assert wait_for_end(control, name)["state"] == "JOB_STATE_CANCELLED"
        took.append(time.monotonic() - asked)
        assert run_processes(control.home) == []
    supervisor.stop()
    control.database.close()
    print(f"\nstopped: median {statistics.median(took):.2f} s, worst {max(took):.2f} s of {TIMES}")
    assert statistics.median(took) < 1.0 and max(took) < 5.0
