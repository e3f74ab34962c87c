"""The loop that runs jobs: extends leases, handles cancels, claims the next jobs, and starts an attempt for each.

Any number of supervisors can share a database. Every step can be repeated, and a kill at any point loses nothing.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from uuid import uuid4

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from sarto.control.context import Control
from sarto.control.executors.executor import Executor
from sarto.control.jobs import events, servers
from sarto.control.jobs.states import CANCELLED, CANCELLED_STATUS, CANCELLING, OPEN_STATES, advance
from sarto.control.runs.attempt import Attempt
from sarto.control.scheduling import leases, queue
from sarto.storage.database.database import Lock
from sarto.storage.database.tables import tuning_job
from sarto.system.loop import Loop

logger = logging.getLogger(__name__)

TICK_SECONDS, IDLE_SECONDS = 0.15, 1.0
"""Between turns while there are jobs that have not ended, and while there are none: then only another server's commit
is seen that late, since a commit of this process wakes the loop."""
SHOW_SECONDS = 1.0
TELL_SECONDS = 20.0
BEATS_PER_LEASE = 4


class Supervisor:
    """Call `start` and `stop` once each. `stop` ends the runs, releases their jobs, and waits for that."""

    def __init__(self, control: Control, executor: Executor) -> None:
        self.control = control
        self.executor = executor
        self.owner = uuid4().hex
        self._attempts: dict[tuple[str, str], tuple[Attempt, threading.Thread]] = {}
        self._loop = Loop("supervisor", self._turn, IDLE_SECONDS, least=TICK_SECONDS)
        self._last_beat = time.monotonic()
        self._last_shown = 0.0
        self._last_reported = -math.inf

    def start(self) -> None:
        self.control.database.watch(self._loop.wake)
        self._loop.start()

    def stop(self) -> None:
        self._loop.stop()
        attempts = list(self._attempts.values())
        for attempt, _ in attempts:
            attempt.stop()
        for _, thread in attempts:
            thread.join()
        try:
            servers.leave(self.control.database, self.owner)
        except SQLAlchemyError:
            logger.warning("server not removed", exc_info=True)  # the others will see it by the silence

    def tick(self) -> None:
        """One turn of the loop."""
        self._attempts = {key: pair for key, pair in self._attempts.items() if pair[1].is_alive()}
        self._keep_leases()
        self._tell_of_server()
        self._end_abandoned_cancels()
        while (lease := leases.claim(self.control.database, self.owner, self.control.limits)) is not None:
            attempt = Attempt(self.control, self.executor, lease, self._free_device())
            thread = threading.Thread(target=attempt.run, name=f"attempt-{attempt.handle}", daemon=True)
            self._attempts[lease.key] = attempt, thread
            thread.start()
        self._show_waiting()

    def _turn(self) -> float | None:
        """Seconds to the next turn. What fails is logged by the loop."""
        try:
            self.tick()
            return TICK_SECONDS if self._attempts or self._has_open_jobs() else None
        except Exception:
            self._fence_if_silent()
            raise

    def _has_open_jobs(self) -> bool:
        is_open = tuning_job.c.state.in_([str(state) for state in OPEN_STATES])
        with self.control.database.reading() as connection:
            return connection.execute(sa.select(tuning_job.c.id).where(is_open).limit(1)).first() is not None

    def _keep_leases(self) -> None:
        """Extend leases when due, and pass on the database's status of the jobs."""
        limits = self.control.limits
        if self._attempts and time.monotonic() - self._last_beat > limits.lease_seconds / BEATS_PER_LEASE:
            leases.beat(self.control.database, (a.lease for a, _ in self._attempts.values()), limits)
            self._last_beat = time.monotonic()
        if not self._attempts:
            self._last_beat = time.monotonic()
            return
        held = leases.held(self.control.database, self.owner)
        for key, (attempt, _) in self._attempts.items():
            status = held.get(key)
            if status is None or status.epoch != attempt.lease.epoch:
                attempt.fence()
            elif status.state is CANCELLING:
                attempt.cancel()

    def _fence_if_silent(self) -> None:
        """After a lease's time without the database, others may have the jobs: end the runs."""
        if time.monotonic() - self._last_beat > self.control.limits.lease_seconds:
            for attempt, _ in self._attempts.values():
                attempt.fence()

    def _end_abandoned_cancels(self) -> None:
        """End jobs in CANCELLING whose supervisor is gone: they have no run to wait for."""
        database = self.control.database
        query = sa.select(tuning_job).where(tuning_job.c.state == str(CANCELLING))
        with database.reading() as connection:
            lapsed = leases.JOBS.is_free(database.now(connection))
            if connection.execute(query.where(lapsed).limit(1)).first() is None:
                return
        with database.transaction() as connection:
            now = database.now(connection)
            lapsed = leases.JOBS.is_free(now)
            for row in connection.execute(query.where(lapsed).with_for_update(skip_locked=True)).all():
                advance(connection, row, CANCELLED, now, {"error": CANCELLED_STATUS})
                words = str(CANCELLED_STATUS["message"])
                events.record(connection, row.project, row.id, row.lease_epoch, now, "cancelled", words)

    def _free_device(self) -> str:
        """A GPU that no other run here uses; without several GPUs the run's own choice."""
        if self.control.limits.gpus < 2 or self.control.limits.devices > 1:
            return "auto"
        taken = {attempt.device for attempt, _ in self._attempts.values()}
        return next(d for d in (f"cuda:{n}" for n in range(self.control.limits.gpus)) if d not in taken)

    def _tell_of_server(self) -> None:
        if time.monotonic() - self._last_reported > TELL_SECONDS:
            servers.tell(self.control.database, self.owner, self.control.limits)
            self._last_reported = time.monotonic()

    def _show_waiting(self) -> None:
        if time.monotonic() - self._last_shown < SHOW_SECONDS:
            return
        self._last_shown = time.monotonic()
        database, limits = self.control.database, self.control.limits
        with database.reading() as connection:
            if not queue.unshown(connection, database.now(connection), self.owner, limits):
                return
        with database.transaction() as connection:
            database.lock(connection, Lock.CLAIM)  # one server does this, so that each reason is written once
            queue.show_waiting(connection, database.now(connection), self.owner, limits)
