"""One attempt at a job, told from top to bottom: prepare, start, watch, settle. Lives in a thread of its own, which
outlives the run it starts. Whatever it writes, it writes under its lease.
"""

from __future__ import annotations

import logging
import math
import re
import threading
import time
from pathlib import Path
from typing import Any

import orjson
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from sarto.control import (
    acting,
    customer_keys,
    disk,
    evaluations,
    events,
    leases,
    progress,
    publishing,
    queue,
    run_specs,
)
from sarto.control.context import AnyRow, Control
from sarto.control.executors import Executor
from sarto.control.leases import Lease
from sarto.control.progress import Gathered, ProgressFile
from sarto.control.sealing import Workplace
from sarto.control.tuning_jobs import (
    CANCELLED,
    CANCELLED_STATUS,
    CANCELLING,
    FAILED,
    PAUSED,
    PENDING,
    RUNNING,
    Fenced,
    advance,
    amend,
)
from sarto.control.validation import Plan
from sarto.errors import DeadlineExceeded, FailedPrecondition, Internal, SartoError
from sarto.names import ResourceName
from sarto.schema.runs import RunResult, RunSpec
from sarto.schema.tuning_jobs import JobState, TuningJob
from sarto.storage.encryption import KeyUnusable
from sarto.storage.tables import experiment

logger = logging.getLogger(__name__)

RESULT_FILE = "result.json"
LOG_FILE = "log.txt"
LOOK_SECONDS = 0.1
WRITE_SECONDS = 0.5
CANCEL_GRACE_SECONDS = 0.5
STOP_GRACE_SECONDS = 2.0
MOST_EPOCHS = 100
"""Claims of one job, whoever died; a job that takes its supervisor down with it must end some day."""


_PROCESSING = "TUNING_JOB_STATE_PROCESSING_DATASET"


class _Cancelled(Exception):
    """The user asked for the end."""


class _Stopped(Exception):
    """The supervisor ends; the job goes back to be claimed again."""


class _Lost(Exception):
    """The run ended without a result."""


class Attempt:
    """`run` does it all; `cancel`, `stop` and `fence` may be called from another thread and are obeyed at once."""

    def __init__(self, control: Control, executor: Executor, lease: Lease, device: str = "auto") -> None:
        self.control = control
        self.executor = executor
        self.lease = lease
        self.device = device
        self.handle = f"{lease.job}-{lease.epoch}"
        self._wake = threading.Event()
        self._order: type[Exception] | None = None
        self._until = math.inf
        self._place: Workplace | None = None

    def cancel(self) -> None:
        """The user wants the job to end."""
        self._tell(_Cancelled)

    def stop(self) -> None:
        """The supervisor ends; the job goes on elsewhere."""
        self._tell(_Stopped)

    def fence(self) -> None:
        """The lease is lost; nothing may be written any more."""
        self._tell(Fenced)

    def run(self) -> None:
        """Never raises: each way an attempt can end is written into the job, or left to the next one."""
        try:
            self._end_of_attempt()
        except Fenced as fault:
            logger.info("attempt fenced", extra={"job": self.lease.job, "reason": str(fault)})
        except Exception:  # not even the end could be written: the lease runs out and someone tries again
            logger.exception("attempt broke off", extra={"job": self.lease.job})
        finally:
            self.executor.stop(self.handle, 0.0)
            if self._place is not None:
                self._place.close()

    def _end_of_attempt(self) -> None:
        try:
            self._run()
        except _Cancelled:
            self._stop_run(CANCEL_GRACE_SECONDS)
            self._close(CANCELLED, CANCELLED_STATUS)
        except _Stopped:
            self._stop_run(STOP_GRACE_SECONDS)
            leases.release(self.control.database, self.lease)
        except _Lost as loss:
            self._stop_run(0.0)
            self._give_back(str(loss))
        except KeyUnusable as refusal:
            self._stop_run(CANCEL_GRACE_SECONDS)
            self._wait_for_key(refusal)
        except disk.NoRoom as lack:
            self._wait_for_room(str(lack))
        except SartoError as fault:
            self._stop_run(CANCEL_GRACE_SECONDS)
            if disk.is_full(fault):
                self._wait_for_room(f"The job waits for room: {fault.message}.")
            else:
                self._close(FAILED, fault.to_status())
        except Fenced:
            if not self._is_cancelling():
                raise
            self.executor.stop(self.handle, CANCEL_GRACE_SECONDS)
            self._close(CANCELLED, CANCELLED_STATUS)
        except Exception as fault:
            logger.exception("attempt failed", extra={"job": self.lease.job})
            self._stop_run(CANCEL_GRACE_SECONDS)
            if disk.is_full(fault):
                self._wait_for_room(f"The job waits for room: {fault}.")
                return
            self._give_back(f"The service had a fault ({type(fault).__name__}).")

    def _run(self) -> None:
        with self.control.database.reading() as connection:
            row = leases.hold(connection, self.lease)
        if row.state == str(CANCELLING):
            raise _Cancelled
        plan = Plan(**orjson.loads(row.run))
        job = TuningJob.read(orjson.loads(row.resource))
        acting.check_run(self.control, self.lease.project, job)
        if plan.kms_key:
            customer_keys.check(self.control, self.lease.project, plan.kms_key)
        place = self._place = Workplace(self.control, self.lease, plan.kms_key)
        place.open()
        spec = run_specs.prepare(self.control, self.lease, orjson.loads(row.resource), plan, place, self.device)
        place.keep()
        disk.check(spec, self.control.home, self.control.limits.reserve_bytes)
        if plan.kms_key:
            disk.check(spec, place.folder, 0)
        run_folder = place.run_folder
        self.executor.start(self.handle, run_folder / run_specs.SPEC_FILE, run_folder / LOG_FILE)
        self._until = self._begin()
        with evaluations.judging(self.control, spec, run_folder):
            code = self._watch(place, spec)
        place.end()
        result = _read_result(run_folder)
        if result is None:
            raise _Lost(f"The run ended with {_exit_words(code, run_folder / LOG_FILE)} and left no result.")
        result = place.result(result)
        if result.error is not None:
            self._close(FAILED, result.error)
            return
        acting.check_run(self.control, self.lease.project, job)
        publishing.settle(self.control, self.lease, result, place)
        logger.info("job succeeded", extra={"job": self.lease.job, "attempt": self.lease.epoch})

    def _begin(self) -> float:
        """PENDING becomes RUNNING and gets its experiment; a job that is tried again only says so. Gives when, by this
        process's monotonic clock, the job must have ended."""
        lease = self.lease
        with self.control.database.transaction() as connection:
            row = leases.hold(connection, lease)
            now = self.control.database.now(connection)
            if row.state == str(PENDING):
                name = _insert_experiment(connection, row, now)
                advance(connection, row, RUNNING, now, {"experiment": name, "tuningJobState": _PROCESSING})
            elif row.state == str(PAUSED):
                advance(connection, row, RUNNING, now, {"error": None})
            words = "The run started." if lease.epoch == 1 else f"Run {lease.epoch} took the job over."
            events.record(connection, lease.project, lease.job, lease.epoch, now, "started", words)
        logger.info("run started", extra={"job": lease.job, "attempt": lease.epoch})
        limit = self.control.limits.max_job_seconds
        begun = now if row.state == str(PENDING) else events.seconds(orjson.loads(row.resource)["startTime"])
        return time.monotonic() + begun + limit - now if limit else math.inf

    def _watch(self, place: Workplace, spec: RunSpec) -> int:
        """Follow the run to its end; gives its exit code."""
        said, gathered, since_write = ProgressFile(place.run_folder), Gathered(), 0.0
        while True:
            self._obey()
            code = self.executor.poll(self.handle)  # before reading, so that nothing said at the end is missed
            for line in said.read():
                gathered.add(place.told(line))
            place.check()
            if code is not None or since_write >= WRITE_SECONDS:
                since_write = 0.0
                place.keep()
                progress.write(self.control.database, self.lease, gathered)
                while gathered.checkpoints and not spec.export_last_checkpoint_only:
                    record = gathered.checkpoints.pop(0)
                    publishing.publish_checkpoint(self.control, self.lease, record, place)
                    self._obey()
                while gathered.assessments:
                    evaluations.publish(self.control, self.lease, gathered.assessments.pop(0), place)
            if code is not None:
                return code
            self._wake.wait(LOOK_SECONDS)
            since_write += LOOK_SECONDS

    def _tell(self, order: type[Exception]) -> None:
        self._order = order
        self._wake.set()

    def _obey(self) -> None:
        if self._order is not None:
            raise self._order(f"job {self.lease.job}")
        if time.monotonic() > self._until:
            limit = self.control.limits.max_job_seconds
            raise DeadlineExceeded(
                f"The job took longer than the {limit:g} seconds that a job may take on this server. Tune on less data"
                " or for fewer epochs, or have its administrator raise max_job_seconds."
            )

    def _is_cancelling(self) -> bool:
        with self.control.database.reading() as connection:
            return bool(leases.hold(connection, self.lease).state == str(CANCELLING))

    def _close(self, to: JobState, status: dict[str, Any]) -> None:
        """End the job without a model; a job whose cancel was asked for meanwhile ends as cancelled."""
        with self.control.database.transaction() as connection:
            row = leases.hold(connection, self.lease)
            if row.state == str(CANCELLING):
                to, status = CANCELLED, CANCELLED_STATUS
            now = self.control.database.now(connection)
            advance(connection, row, to, now, {"error": status})
            kind = "cancelled" if to is CANCELLED else "failed"
            events.record(
                connection, row.project, row.id, self.lease.epoch, now, kind, str(status["message"]), {"error": status}
            )
        logger.info("job ended", extra={"job": self.lease.job, "state": str(to)})

    def _wait_for_room(self, words: str) -> None:
        """The disk is full: look again after a pause. Costs no attempt, and is told once, not at every look."""
        lease, database = self.lease, self.control.database
        with database.transaction() as connection:
            row = leases.hold(connection, lease)
            now = database.now(connection)
            if events.last_kind(connection, lease.project, lease.job) != "waiting":
                logger.warning("job waits for room", extra={"job": lease.job})
                events.record(connection, lease.project, lease.job, lease.epoch, now, "waiting", words)
            amend(connection, row, now, {"tuningJobState": queue.WAITING_FOR_CAPACITY})
        leases.release(database, lease, pause_seconds=self.control.limits.room_seconds)

    def _wait_for_key(self, refusal: KeyUnusable) -> None:
        """The key is disabled: the job stops until it is enabled. Costs no attempt, and is told once."""
        lease, database = self.lease, self.control.database
        with database.transaction() as connection:
            row = leases.hold(connection, lease)
            now = database.now(connection)
            if row.state == str(RUNNING):
                words = f"The job stopped: {refusal.message} It goes on when the key is enabled."
                advance(connection, row, PAUSED, now, {"error": FailedPrecondition(words).to_status()})
                events.record(connection, lease.project, lease.job, lease.epoch, now, "paused", words)
                logger.warning("job paused", extra={"job": lease.job, "reason": refusal.message})
            elif events.last_kind(connection, lease.project, lease.job) != "waiting":
                words = f"The job waits for its key: {refusal.message}"
                events.record(connection, lease.project, lease.job, lease.epoch, now, "waiting", words)
        leases.release(database, lease, pause_seconds=self.control.limits.lease_seconds / 2)

    def _stop_run(self, grace_seconds: float) -> None:
        """What the run has made until now is kept for the next attempt."""
        self.executor.stop(self.handle, grace_seconds)
        if self._place is not None:
            self._place.end()

    def _give_back(self, reason: str) -> None:
        """A loss of machinery: try again after a pause, or fail when attempts are used up."""
        limits, losses = self.control.limits, self.lease.losses + 1
        logger.warning("run lost", extra={"job": self.lease.job, "attempt": self.lease.epoch, "reason": reason})
        if losses >= limits.max_attempts or self.lease.epoch >= MOST_EPOCHS or self._is_cancelling():
            words = f"The service lost the run {losses} times; this is no fault of your data. {reason}"
            self._close(FAILED, Internal(words).to_status())
            return
        pause = limits.retry_seconds * 2 ** (losses - 1)
        with self.control.database.transaction() as connection:
            row = leases.hold(connection, self.lease)
            now = self.control.database.now(connection)
            words = f"{reason} It is tried again in {pause:g} seconds."
            events.record(connection, row.project, row.id, self.lease.epoch, now, "lost", words)
        leases.release(self.control.database, self.lease, pause_seconds=pause, is_lost=True)


def _insert_experiment(connection: Connection, row: AnyRow, now: float) -> str:
    """The name of the job's experiment, unique in its project: the time it started, to the microsecond."""
    micros = int(now * 1e6)
    while True:
        moment = events.timestamp(micros / 1e6)
        digits = "".join(c for c in moment if c.isdigit())
        identifier = f"tuning-experiment-{digits}"
        taken = sa.select(experiment.c.id).where(experiment.c.project == row.project, experiment.c.id == identifier)
        if connection.execute(taken).first() is None:
            break
        micros += 1
    connection.execute(
        experiment.insert().values(project=row.project, id=identifier, location=row.location, job=row.id)
    )
    return str(ResourceName(row.project, row.location, "metadataStores", "default")) + f"/contexts/{identifier}"


def _read_result(run_folder: Path) -> RunResult | None:
    try:
        data = (run_folder / RESULT_FILE).read_bytes()
    except FileNotFoundError:
        return None
    return RunResult.model_validate_json(data)


def _exit_words(code: int, log: Path) -> str:
    """How a run ended; of an exception only its kind, since its words may hold the user's data."""
    if code < 0:
        return f"signal {-code}"
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 10_000))
        kinds = _EXCEPTION.findall(file.read().decode(errors="replace"))
    return f"exit code {code}" + (f" ({kinds[-1]})" if kinds else "")


_EXCEPTION = re.compile(r"^([A-Za-z_][\w.]*(?:Error|Exception))\b(?::|$)", re.MULTILINE)
