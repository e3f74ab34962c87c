from __future__ import annotations

import threading
from dataclasses import replace

import pytest
import sqlalchemy as sa

from sarto.configuration import Limits
from sarto.control.context import Control
from sarto.control.jobs import tuning_jobs
from sarto.control.jobs.states import CANCELLED, FAILED, RUNNING, SUCCEEDED, Fenced, advance
from sarto.control.scheduling import leases, queue
from sarto.control.scheduling.leases import Lease, Leases
from sarto.schema.tuning_jobs import JobState
from sarto.storage.database.tables import batch_prediction_job, dataset_evaluation, model_export, tuning_job
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

    threads = [threading.Thread(target=take, args=(f"owner-{i}",), daemon=True) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == len({lease.job for lease in found}) == 5


TABLES = [model_export, dataset_evaluation, batch_prediction_job]


def put(control: Control, table: sa.Table, identifier: str, time: float, project: str = "1") -> None:
    texts = dict.fromkeys(("location", "state", "display_name", "resource", "run", "asked_by"), "")
    values = {**texts, "cancel_requested": False, "lease_epoch": 0, "create_time": time, "project": project}
    values[list(table.primary_key.columns)[1].name] = identifier
    with control.database.transaction() as connection:
        connection.execute(table.insert().values(**{c.name: values[c.name] for c in table.c if c.name in values}))


def take(control: Control, table: sa.Table, owner: str, now: float = 100.0, project: str = "1") -> Lease | None:
    found = Leases(table)
    with control.database.transaction() as connection:
        row = found.oldest(connection, project, now)
        row = found.claim(connection, row, owner, now + 10.0) if row is not None else None
    return found.of(row) if row is not None else None


@pytest.mark.parametrize("table", TABLES, ids=str)
def test_rows_of_any_table_are_claimed_oldest_first_and_again_when_their_lease_is_over(
    any_control: Control, table: sa.Table
) -> None:
    put(any_control, table, "young", 2.0)
    put(any_control, table, "old", 1.0)
    put(any_control, table, "other", 1.5, "2")
    with any_control.database.reading() as connection:
        assert Leases(table).waiting(connection, 100.0) == ["1", "2"]
    first, second = take(any_control, table, "a"), take(any_control, table, "b")
    assert (first, second) == (Lease("1", "old", "a", 1), Lease("1", "young", "b", 1))
    assert take(any_control, table, "c") is None
    assert take(any_control, table, "c", now=110.5) == Lease("1", "old", "c", 2)


@pytest.mark.parametrize("table", TABLES, ids=str)
def test_a_lease_that_is_over_writes_nothing_in_any_table(any_control: Control, table: sa.Table) -> None:
    put(any_control, table, "x", 1.0)
    old, new = take(any_control, table, "a"), take(any_control, table, "b", now=200.0)
    assert old is not None and new is not None
    ours = Leases(table)
    for stale in (old, replace(new, owner="a"), replace(new, epoch=1)):
        with any_control.database.transaction() as connection:
            assert not ours.change(connection, stale, run="stale") and not ours.remove(connection, stale)
            assert ours.find(connection, stale) is None
            for act in (lambda: ours.hold(connection, stale), lambda: ours.extend(connection, stale, 999.0)):  # noqa: B023
                with pytest.raises(Fenced):
                    act()
    with any_control.database.transaction() as connection:
        ours.extend(connection, new, 300.0)
        row = ours.hold(connection, new)
        assert (row.lease_until, row.run) == (300.0, "")
        assert ours.change(connection, new, run="fresh") and ours.hold(connection, new).run == "fresh"
        assert ours.remove(connection, new) and ours.find(connection, new) is None


@pytest.mark.parametrize("table", TABLES, ids=str)
def test_of_two_that_read_one_row_one_claims_it(any_control: Control, table: sa.Table) -> None:
    put(any_control, table, "x", 1.0)
    ours = Leases(table)
    with any_control.database.reading() as connection:
        row = connection.execute(sa.select(table)).one()
    with any_control.database.transaction() as connection:
        assert ours.claim(connection, row, "a", 10.0, sa.literal(1) == 2) is None
        assert ours.claim(connection, row, "a", 10.0) is not None
        assert ours.claim(connection, row, "b", 10.0) is None
