"""The store of jobs against a model of a few lines: whatever is done in whatever order, both say the same."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, multiple, rule

from sarto.configuration import Limits
from sarto.control.jobs import tuning_jobs
from sarto.control.jobs.states import CANCELLED, FAILED, RUNNING, SUCCEEDED, Fenced, advance
from sarto.control.scheduling import leases
from sarto.control.scheduling.leases import Lease
from sarto.names import LocationName, ResourceName
from sarto.schema.tuning_jobs import JobState
from sarto.storage.database.tables import tuning_job
from tests.control.homes import PARENT, create, make_control, member

LIMITS = Limits(threads=1, concurrent_jobs=2, concurrent_runs=1, lease_seconds=600.0, reserve_bytes=0)
ENDED = {"SUCCEEDED", "FAILED", "CANCELLED"}
MOVES = {
    ("PENDING", "RUNNING"), ("PENDING", "FAILED"), ("PENDING", "CANCELLED"), ("RUNNING", "SUCCEEDED"),
    ("RUNNING", "FAILED"), ("RUNNING", "CANCELLED"), ("CANCELLING", "CANCELLED"),
}  # fmt: skip


class Store(RuleBasedStateMachine):
    jobs = Bundle("jobs")
    held = Bundle("held")

    @initialize(target=jobs)
    def open(self) -> Any:
        """Begins with enough jobs to reach every limit without luck."""
        self.home = Path(tempfile.mkdtemp(prefix="sarto-store-"))
        self.control = make_control(self.home, limits=LIMITS)
        self.states: dict[str, str] = {}
        self.holders: dict[str, Lease] = {}
        self.order: list[str] = []
        self.epochs: dict[str, int] = {}
        return multiple(*(self.add() for _ in range(4)))

    @rule(target=jobs)
    def make(self) -> Any:
        return self.add()

    def add(self) -> ResourceName:
        name = create(self.control)
        self.states[name.id] = "PENDING"
        self.order.append(name.id)
        return name

    @rule(target=held, owner=st.sampled_from("abc"))
    def claim(self, owner: str) -> Any:
        lease = leases.claim(self.control.database, owner, LIMITS)
        free = [j for j in self.order if self.states[j] in ("RUNNING", "PENDING") and j not in self.holders]
        own = [one for one in self.holders.values() if one.owner == owner]
        if len(self.holders) >= LIMITS.concurrent_jobs or len(own) >= LIMITS.concurrent_runs or not free:
            assert lease is None
            return multiple()
        assert lease is not None
        interrupted = [j for j in free if self.states[j] == "RUNNING"]
        assert lease.job == (interrupted or free)[0]
        assert lease.epoch == self.epochs.get(lease.job, 0) + 1
        self.epochs[lease.job] = lease.epoch
        self.holders[lease.job] = lease
        return lease

    @rule(lease=held, to=st.sampled_from([RUNNING, SUCCEEDED, FAILED, CANCELLED]))
    def write(self, lease: Lease, to: JobState) -> None:
        wanted = str(to).removeprefix("JOB_STATE_")
        may = self.holders.get(lease.job) == lease and (self.states[lease.job], wanted) in MOVES
        try:
            with self.control.database.transaction() as connection:
                row = leases.hold(connection, lease)
                advance(connection, row, to, self.control.database.now(connection))
            assert may
            self.states[lease.job] = wanted
            if wanted in ENDED:
                del self.holders[lease.job]
        except Fenced:
            assert not may

    @rule(lease=held)
    def release(self, lease: Lease) -> None:
        try:
            leases.release(self.control.database, lease)
            assert self.holders.pop(lease.job) == lease
        except Fenced:
            assert self.holders.get(lease.job) != lease

    @rule(name=jobs)
    def lapse(self, name: Any) -> None:
        with self.control.database.transaction() as connection:
            held = tuning_job.c.id == name.id, tuning_job.c.lease_owner.is_not(None)
            connection.execute(tuning_job.update().where(*held).values(lease_until=1.0))
        lease = self.holders.pop(name.id, None)
        if lease is not None:
            leases.beat(self.control.database, [lease], LIMITS)  # it was only slow, and nobody took over meanwhile
            self.holders[name.id] = lease

    @rule(name=jobs)
    def cancel(self, name: Any) -> None:
        tuning_jobs.cancel(self.control, member(self.control), name)
        before = self.states[name.id]
        if before == "PENDING" or (before == "RUNNING" and name.id not in self.holders):
            self.states[name.id] = "CANCELLED"
            self.holders.pop(name.id, None)
        elif before == "RUNNING":
            self.states[name.id] = "CANCELLING"

    @rule(lease=held)
    def cancel_what_is_held(self, lease: Lease) -> None:
        self.cancel(ResourceName("demo", PARENT.location, "tuningJobs", lease.job))

    @rule(lease=held)
    def begin(self, lease: Lease) -> None:
        self.write(lease, RUNNING)

    @invariant()
    def states_agree(self) -> None:
        if not hasattr(self, "states"):
            return
        listed, _ = tuning_jobs.list_jobs(self.control, member(self.control), LocationName("demo", "-"))
        found = {job["name"].rpartition("/")[2]: job["state"].removeprefix("JOB_STATE_") for job in listed}
        assert found == self.states
        assert all(("endTime" in job) == (found[job["name"].rpartition("/")[2]] in ENDED) for job in listed)

    def teardown(self) -> None:
        if hasattr(self, "control"):
            self.control.database.close()
            shutil.rmtree(self.home, ignore_errors=True)


TestStore = Store.TestCase
TestStore.settings = settings(
    max_examples=20, stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
