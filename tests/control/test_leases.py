from __future__ import annotations

import threading
from dataclasses import replace

import pytest

from sarto.control import leases, queue, tuning_jobs
from sarto.control.context import Control, Limits
from sarto.control.leases import Lease
from sarto.control.tuning_jobs import CANCELLED, FAILED, RUNNING, SUCCEEDED, Fenced, advance
from sarto.schema.tuning_jobs import JobState
from sarto.storage.tables import tuning_job
from tests.control.homes import LIMITS, add_project, create, member, read, state

WIDE = Limits(concurrent_jobs=9, concurrent_runs=9, lease_seconds=60.0)


def claim(control: Control, owner: str = "a", limits: Limits = WIDE) -> Lease:
    lease = leases.claim(control.database, owner, limits)
    assert lease is not None
    return lease


def move(control: Control, lease: Lease, to: JobState) -> None:
    with control.database.transaction() as connection:
        advance(connection, leases.hold(connection, lease), to, control.database.now(connection))


def lapse(control: Control) -> None:
    """Let every lease run out."""
    with control.database.transaction() as connection:
        connection.execute(tuning_job.update().where(tuning_job.c.lease_until.is_not(None)).values(lease_until=1.0))


def test_the_oldest_job_is_claimed_and_no_job_twice(any_control: Control) -> None:
    first, second = create(any_control), create(any_control)
    assert [claim(any_control).job, claim(any_control, "b").job] == [first.id, second.id]
    assert leases.claim(any_control.database, "c", WIDE) is None


def test_a_project_has_only_so_many_jobs_at_once_and_the_rest_wait_for_quota(any_control: Control) -> None:
    create(any_control)
    waiting = create(any_control)
    claim(any_control, limits=LIMITS)
    assert leases.claim(any_control.database, "b", LIMITS) is None
    with any_control.database.transaction() as connection:
        queue.show_waiting(connection, any_control.database.now(connection) + 1.0, "a", LIMITS)
    assert read(any_control, waiting)["tuningJobState"] == "TUNING_JOB_STATE_WAITING_FOR_QUOTA"
    assert state(any_control, waiting) == "PENDING"


def test_a_supervisor_has_only_so_many_runs_and_other_projects_wait_for_capacity(any_control: Control) -> None:
    add_project(any_control, "other")
    names = [create(any_control), create(any_control, "gs://data-other/train.jsonl", project="other")]
    taken = claim(any_control, limits=LIMITS).job
    assert leases.claim(any_control.database, "a", LIMITS) is None
    with any_control.database.transaction() as connection:
        queue.show_waiting(connection, any_control.database.now(connection) + 1.0, "a", LIMITS)
    waiting = next(name for name in names if name.id != taken)
    assert read(any_control, waiting)["tuningJobState"] == "TUNING_JOB_STATE_WAITING_FOR_CAPACITY"


def test_projects_take_turns(any_control: Control) -> None:
    others = [add_project(any_control, f"p-{i}-x").project for i in range(2)]
    for _ in range(3):
        create(any_control)
    for i in range(2):
        for _ in range(2):
            create(any_control, f"gs://data-p-{i}-x/train.jsonl", project=f"p-{i}-x")
    served = []
    for _ in range(6):
        lease = claim(any_control)
        served.append(lease.project)
        move(any_control, lease, FAILED)
    everyone = {member(any_control).project, *others}
    assert set(served[:3]) == everyone and set(served[3:]) == everyone


def test_an_old_epoch_writes_nothing(any_control: Control) -> None:
    name = create(any_control)
    old = claim(any_control, "a")
    move(any_control, old, RUNNING)
    lapse(any_control)
    new = claim(any_control, "b")
    assert new.epoch == old.epoch + 1
    for to in (SUCCEEDED, FAILED):
        with pytest.raises(Fenced):
            move(any_control, old, to)
    with pytest.raises(Fenced):
        leases.release(any_control.database, old)
    leases.beat(any_control.database, [old], WIDE)
    assert leases.held(any_control.database, "a") == {}
    move(any_control, new, SUCCEEDED)
    assert state(any_control, name) == "SUCCEEDED"


def test_a_forged_owner_of_the_right_epoch_writes_nothing(control: Control) -> None:
    create(control)
    lease = claim(control)
    with pytest.raises(Fenced):
        move(control, replace(lease, owner="z"), RUNNING)


def test_no_move_leads_out_of_an_end(any_control: Control) -> None:
    create(any_control)
    lease = claim(any_control)
    move(any_control, lease, RUNNING)
    with any_control.database.transaction() as connection:
        row = leases.hold(connection, lease)
        advance(connection, row, SUCCEEDED, 1.0)
        for to in (RUNNING, FAILED, CANCELLED, SUCCEEDED):
            with pytest.raises(Fenced):
                advance(connection, row, to, 1.0)


def test_a_released_job_waits_out_its_pause_and_counts_its_loss(any_control: Control) -> None:
    create(any_control)
    lease = claim(any_control)
    leases.release(any_control.database, lease, pause_seconds=60.0, is_lost=True)
    assert leases.claim(any_control.database, "a", WIDE) is None
    with any_control.database.transaction() as connection:
        connection.execute(tuning_job.update().values(not_before=0.0))
    assert claim(any_control).losses == 1


def test_cancel_of_a_running_job_is_seen_by_its_holder(any_control: Control) -> None:
    name = create(any_control)
    lease = claim(any_control)
    move(any_control, lease, RUNNING)
    tuning_jobs.cancel(any_control, member(any_control), name)
    assert str(leases.held(any_control.database, "a")[lease.key].state) == "JOB_STATE_CANCELLING"
    with pytest.raises(Fenced):
        move(any_control, lease, SUCCEEDED)
    move(any_control, lease, CANCELLED)


def test_cancel_of_a_running_job_that_nobody_holds_is_at_once(any_control: Control) -> None:
    name = create(any_control)
    move(any_control, claim(any_control), RUNNING)
    lapse(any_control)
    tuning_jobs.cancel(any_control, member(any_control), name)
    assert state(any_control, name) == "CANCELLED"


def test_claims_at_the_same_moment_take_different_jobs_and_keep_the_quota(any_control: Control) -> None:
    for _ in range(8):
        create(any_control)
    limits, found = replace(WIDE, concurrent_jobs=5), list[Lease]()
    ready = threading.Barrier(8)

    def take(owner: str) -> None:
        ready.wait()
        for _ in range(2):
            if (lease := leases.claim(any_control.database, owner, limits)) is not None:
                found.append(lease)

    threads = [threading.Thread(target=take, args=(f"owner-{i}",)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == len({lease.job for lease in found}) == 5
