"""A random storm: jobs made, cancelled, supervisors and runs killed, or stopped for longer than their lease.

`SARTO_STORM_SECONDS` sets how long it blows on each database (default 60), `SARTO_STORM_SEED` what happens.
"""

from __future__ import annotations

import os
import random
import signal
import statistics
import threading
import time
from pathlib import Path

import orjson
import pytest
import sqlalchemy as sa

from sarto.control.context import Control
from sarto.control.jobs import tuning_jobs
from sarto.schema.tuning_jobs import JobState
from sarto.storage.database.tables import job_event
from tests.control.homes import member, wait_until
from tests.crash.worlds import LIMITS, Template, World, make, parsed, rows, start, supervise_for_ever, violations

SECONDS = float(os.environ.get("SARTO_STORM_SECONDS", "60"))
SEED = int(os.environ.get("SARTO_STORM_SEED", "7"))
SUPERVISORS = 3


class Storm:
    def __init__(self, world: World, seed: int) -> None:
        self.world, self.random = world, random.Random(seed)
        self.control = world.open()
        self.supervisors = [start(supervise_for_ever, world) for _ in range(SUPERVISORS)]
        self.stopped: dict[int, threading.Timer] = {}
        self.killed: list[tuple[str, int, float]] = []
        """Job, epoch and time of each attempt that lost its supervisor."""
        self.jobs = self.supervisor_kills = self.run_kills = self.pauses = self.cancels = 0

    def blow(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            act = self.random.choice(
                (self.make, self.make, self.cancel, self.kill, self.kill_run, self.kill_run, self.stop)
            )
            act()
            time.sleep(self.random.uniform(0.05, 0.3))
        for timer in list(self.stopped.values()):
            timer.join()

    def make(self) -> None:
        if sum(not JobState(row.state).is_final for row in rows(self.control)) < 8:
            self.jobs += 1
            make(self.control, self.jobs, self.random.choice(("train", "train", "slow", "die-once")))

    def cancel(self) -> None:
        left = [row for row in rows(self.control) if not JobState(row.state).is_final]
        if left and self.random.random() < 0.4:
            self.cancels += 1
            name = parsed(orjson.loads(self.random.choice(left).resource)["name"])
            tuning_jobs.cancel(self.control, member(self.control), name)

    def kill(self) -> None:
        number = self.random.randrange(SUPERVISORS)
        child = self.supervisors[number]
        owner = self.world.home / f"owner-{child.pid}"
        if not owner.exists():
            return  # it has only begun
        child.kill()
        held = [row for row in rows(self.control) if row.lease_owner == owner.read_text()]
        self.killed += [(row.id, row.lease_epoch, time.time()) for row in held]
        child.join()
        self.supervisor_kills += 1
        self.supervisors[number] = start(supervise_for_ever, self.world)

    def kill_run(self) -> None:
        found = run_processes(self.world.home)
        if found:
            try:
                os.kill(self.random.choice(found), signal.SIGKILL)
                self.run_kills += 1
            except ProcessLookupError:
                pass

    def stop(self) -> None:
        """For longer than two leases; what it then writes is a zombie's. Woken by a clock of its own: one that is
        stopped inside a transaction holds up all writers on SQLite, the storm among them."""
        pid = self.random.choice(self.supervisors).pid
        assert pid is not None
        if pid in self.stopped:
            return
        os.kill(pid, signal.SIGSTOP)
        self.pauses += 1
        self.stopped[pid] = threading.Timer(2.2 * LIMITS.lease_seconds, self.wake, [pid])
        self.stopped[pid].start()

    def wake(self, pid: int) -> None:
        del self.stopped[pid]
        try:
            os.kill(pid, signal.SIGCONT)
        except ProcessLookupError:
            pass  # it was killed meanwhile


def run_processes(home: Path) -> list[int]:
    found = []
    for folder in Path("/proc").iterdir():
        try:
            words = (folder / "cmdline").read_bytes() if folder.name.isdigit() else b""
        except OSError:
            continue
        if b"stand_in" in words and str(home).encode() in words:
            found.append(int(folder.name))
    return found


def recoveries(control: Control, killed: list[tuple[str, int, float]]) -> list[float]:
    """Seconds from the death of a supervisor to the start of its jobs' next attempts, for jobs that had one."""
    query = sa.select(job_event.c.job, job_event.c.epoch, sa.func.min(job_event.c.time).label("time"))
    with control.database.reading() as connection:
        told = connection.execute(
            query.where(job_event.c.kind == "started").group_by(job_event.c.job, job_event.c.epoch)
        ).all()
    waits = []
    for job, epoch, at in killed:
        later = [row.time - at for row in told if row.job == job and row.epoch > epoch]
        waits += [min(later)] if later else []
    return waits


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_a_storm_of_kills_breaks_nothing(request: pytest.FixtureRequest, tmp_path: Path, database: str) -> None:
    server = request.getfixturevalue("postgres") if database == "postgresql" else ""
    storm = Storm(Template(tmp_path, server).world(), SEED)
    storm.blow(SECONDS)
    control = storm.control
    wait_until(lambda: all(JobState(row.state).is_final for row in rows(control)), 60)
    for child in storm.supervisors:
        child.kill()
        child.join()
    found = list(violations(control))
    waits = recoveries(control, storm.killed)
    p95 = statistics.quantiles(waits, n=20)[-1] if len(waits) > 1 else sum(waits)
    ends = [row.state.removeprefix("JOB_STATE_") for row in rows(control)]
    print(
        f"\n{database}: {storm.jobs} jobs ({', '.join(f'{ends.count(e)} {e}' for e in sorted(set(ends)))}), "
        f"{storm.supervisor_kills} supervisors and {storm.run_kills} runs killed, {storm.pauses} stopped two leases,"
        f" {storm.cancels} cancels; {len(found)} violations; taken over {len(waits)} times, p95 {p95:.2f} s "
        f"(lease {LIMITS.lease_seconds:g} s)"
    )
    failed = [orjson.loads(row.resource) for row in rows(control) if row.state == "JOB_STATE_FAILED"]
    control.database.close()
    assert found == []
    lost = f"The service lost the run {LIMITS.max_attempts} times"
    assert all(job["error"]["message"].startswith(lost) for job in failed), [job["error"] for job in failed]
