"""The loop that keeps jobs going: keep leases, hear cancels, claim what may run, and give each claimed job an attempt.

Any number of supervisors may share a database; each step is safe to repeat, and killing one at any point loses nothing.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from uuid import uuid4

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from sarto.control import capacity, events, leases, queue
from sarto.control.attempts import Attempt
from sarto.control.context import Control
from sarto.control.executors import Executor
from sarto.control.tuning_jobs import CANCELLED, CANCELLED_STATUS, CANCELLING, advance
from sarto.storage.tables import tuning_job

logger = logging.getLogger(__name__)

TICK_SECONDS = 0.15
SHOW_SECONDS = 1.0
TELL_SECONDS = 20.0
BEATS_PER_LEASE = 4


class Supervisor:
    """`start` and `stop` once each. `stop` ends the runs and hands their jobs back; it returns when all are gone."""

    def __init__(self, control: Control, executor: Executor) -> None:
        self.control = control
        self.executor = executor
        self.owner = uuid4().hex
        self._attempts: dict[tuple[str, str], tuple[Attempt, threading.Thread]] = {}
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="supervisor", daemon=True)
        self._last_beat = time.monotonic()
        self._last_shown = 0.0
        self._last_told = -math.inf

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join()
        attempts = list(self._attempts.values())
        for attempt, _ in attempts:
            attempt.stop()
        for _, thread in attempts:
            thread.join()
        try:
            capacity.leave(self.control.database, self.owner)
        except SQLAlchemyError:
            logger.warning("leaving not told", exc_info=True)  # the others will see it by the silence

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

    def _loop(self) -> None:
        while not self._stopping.wait(TICK_SECONDS):
            try:
                self.tick()
            except Exception:
                logger.exception("supervisor tick failed")
                self._fence_if_silent()

    def _keep_leases(self) -> None:
        """Beat when due, and pass on what the database says about the jobs we hold."""
        limits = self.control.limits
        if self._attempts and time.monotonic() - self._last_beat > limits.lease_seconds / BEATS_PER_LEASE:
            leases.beat(self.control.database, (a.lease for a, _ in self._attempts.values()), limits)
            self._last_beat = time.monotonic()
        if not self._attempts:
            self._last_beat = time.monotonic()
            return
        held = leases.held(self.control.database, self.owner)
        for key, (attempt, _) in self._attempts.items():
            found = held.get(key)
            if found is None or found.epoch != attempt.lease.epoch:
                attempt.fence()
            elif found.state is CANCELLING:
                attempt.cancel()

    def _fence_if_silent(self) -> None:
        """Without the database for longer than a lease, others may have our jobs: end the runs."""
        if time.monotonic() - self._last_beat > self.control.limits.lease_seconds:
            for attempt, _ in self._attempts.values():
                attempt.fence()

    def _end_abandoned_cancels(self) -> None:
        """Jobs being cancelled whose supervisor is gone: there is no run left to wait for."""
        database = self.control.database
        query = sa.select(tuning_job).where(tuning_job.c.state == str(CANCELLING))
        with database.reading() as connection:
            now = database.now(connection)
            lapsed = sa.or_(tuning_job.c.lease_until.is_(None), tuning_job.c.lease_until < now)
            if connection.execute(query.where(lapsed).limit(1)).first() is None:
                return
        with database.transaction() as connection:
            now = database.now(connection)
            lapsed = sa.or_(tuning_job.c.lease_until.is_(None), tuning_job.c.lease_until < now)
            for row in connection.execute(query.where(lapsed).with_for_update(skip_locked=True)).all():
                advance(connection, row, CANCELLED, now, {"error": CANCELLED_STATUS})
                words = str(CANCELLED_STATUS["message"])
                events.record(connection, row.project, row.id, row.lease_epoch, now, "cancelled", words)

    def _free_device(self) -> str:
        """Of several GPUs one that no other run here has; else the run takes what there is."""
        if self.control.limits.run_gpus < 2 or self.control.limits.devices > 1:
            return "auto"
        taken = {attempt.device for attempt, _ in self._attempts.values()}
        return next(d for d in (f"cuda:{n}" for n in range(self.control.limits.run_gpus)) if d not in taken)

    def _tell_of_server(self) -> None:
        if time.monotonic() - self._last_told > TELL_SECONDS:
            capacity.tell(self.control.database, self.owner, self.control.limits)
            self._last_told = time.monotonic()

    def _show_waiting(self) -> None:
        if time.monotonic() - self._last_shown < SHOW_SECONDS:
            return
        self._last_shown = time.monotonic()
        database, limits = self.control.database, self.control.limits
        with database.reading() as connection:
            if not queue.unshown(connection, database.now(connection), self.owner, limits):
                return
        with database.transaction() as connection:
            if not database.is_sqlite:  # one server shows, so that it is told once
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(queue.CLAIM_LOCK)))
            queue.show_waiting(connection, database.now(connection), self.owner, limits)
