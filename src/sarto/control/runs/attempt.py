"""One attempt at a job: prepare, start, watch, publish. It has its own thread, which outlives the run that it starts.
Every write is made under the attempt's lease."""

from __future__ import annotations

import logging
import math
import re
import threading
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from sarto.contract.run_folder import LOG_FILE, PROGRESS_FILE, RESULT_FILE, SPEC_FILE
from sarto.contract.tuning_run import Progress, RunResult, RunSpec
from sarto.control.access import run_identity
from sarto.control.context import Control
from sarto.control.executors.executor import Executor, Launch, RunTransport
from sarto.control.jobs import events
from sarto.control.jobs.job_row import job_of, plan_of
from sarto.control.jobs.remedies import with_remedies
from sarto.control.jobs.states import (
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
from sarto.control.keys import key_use
from sarto.control.runs import disk_space, evaluations, progress, publishing, run_spec
from sarto.control.runs.experiment import insert_experiment
from sarto.control.runs.progress import PendingProgress
from sarto.control.runs.workspace import Workspace
from sarto.control.scheduling import leases, queue
from sarto.control.scheduling.leases import Lease
from sarto.errors import DeadlineExceeded, FailedPrecondition, Internal, SartoError
from sarto.schema.tuning_jobs import SPECS, JobState
from sarto.storage.database.database import report
from sarto.storage.encryption.envelope import KeyUnusable

logger = logging.getLogger(__name__)

LOOK_SECONDS = 0.1
WRITE_SECONDS = 0.5
CANCEL_GRACE_SECONDS = 0.5
STOP_GRACE_SECONDS = 2.0
MOST_EPOCHS = 100
"""Most claims of one job, so that a job that kills its supervisors also ends."""


_PROCESSING = "TUNING_JOB_STATE_PROCESSING_DATASET"


class _Cancelled(Exception):
    """The user cancelled the job."""


class _Stopped(Exception):
    """The supervisor ends; the job is released."""


class _Lost(Exception):
    """The run ended without a result."""


class Attempt:
    """`run` blocks until the attempt ends. `cancel`, `stop` and `fence` are thread-safe and interrupt it."""

    def __init__(self, control: Control, executor: Executor, lease: Lease, device: str = "auto") -> None:
        self.control = control
        self.executor = executor
        self.lease = lease
        self.device = device
        self.handle = f"{lease.job}-{lease.epoch}"
        self._wake = threading.Event()
        self._order: type[Exception] | None = None
        self._until = math.inf
        self._workspace: Workspace | None = None
        self._spec: RunSpec | None = None
        self._transport: RunTransport | None = None

    def cancel(self) -> None:
        """End the attempt because the user cancelled the job."""
        self._tell(_Cancelled)

    def stop(self) -> None:
        """End the attempt because the supervisor ends; another one continues the job."""
        self._tell(_Stopped)

    def fence(self) -> None:
        """End the attempt because the lease is lost; nothing may be written any more."""
        self._tell(Fenced)

    def run(self) -> None:
        """Never raises: each end of an attempt is written into the job, or left to the next attempt."""
        try:
            with self._for_its_maker():
                self._end_of_attempt()
        except Fenced as fault:
            logger.info("attempt fenced", extra={"job": self.lease.job, "reason": str(fault)})
        except Exception:  # not even the end could be written: the lease runs out and someone tries again
            logger.exception("attempt broke off", extra={"job": self.lease.job})
        finally:
            if self._transport is not None:
                self._transport.stop(0.0)
            if self._workspace is not None:
                self._workspace.close()

    def _for_its_maker(self) -> AbstractContextManager[None]:
        """For the audit log: within the block the service acts as the job's run identity, for the job's maker."""
        with self.control.database.reading() as connection:
            row = leases.hold(connection, self.lease)
        job = job_of(row)
        return run_identity.on_behalf(self.control, row.project, row.asked_by, job.name, job.service_account)

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
        except disk_space.DiskFull as lack:
            self._wait_for_room(str(lack))
        except SartoError as fault:
            self._stop_run(CANCEL_GRACE_SECONDS)
            if disk_space.is_full(fault):
                self._wait_for_room(f"The job waits for disk space: {fault.message}")
            else:
                self._close(FAILED, fault.to_status())
        except Fenced:
            if not self._is_cancelling():
                raise
            if self._transport is not None:
                self._transport.stop(CANCEL_GRACE_SECONDS)
            self._close(CANCELLED, CANCELLED_STATUS)
        except Exception as fault:
            logger.exception("attempt failed", extra={"job": self.lease.job})
            self._stop_run(CANCEL_GRACE_SECONDS)
            if disk_space.is_full(fault):
                self._wait_for_room(f"The job waits for disk space: {fault}.")
                return
            self._give_back(f"The service had a fault ({type(fault).__name__}).")

    def _run(self) -> None:
        with self.control.database.reading() as connection:
            row = leases.hold(connection, self.lease)
        if row.state == str(CANCELLING):
            raise _Cancelled
        plan, job = plan_of(row), job_of(row)
        run_identity.check_run(self.control, self.lease.project, job)
        if plan.kms_key:
            key_use.check(self.control, self.lease.project, plan.kms_key)
        workspace = self._workspace = Workspace(self.control, self.lease, plan.kms_key)
        workspace.open()
        spec = run_spec.prepare(self.control, self.lease, job, plan, workspace, self.device)
        workspace.keep()
        located = workspace.places.located(spec)
        disk_space.check(located, self.control.home, self.control.limits.reserve_bytes)
        if plan.kms_key:
            disk_space.check(located, workspace.folder, 0)
        run_folder = workspace.run_folder
        launch = Launch(self.handle, f"{spec.run_folder}/{SPEC_FILE}", workspace.places, run_folder / LOG_FILE)
        self._spec, self._transport = spec, self.executor.start(launch)
        self._until = self._begin()
        with evaluations.judging(self.control, spec, self._transport):
            code = self._watch(workspace, spec, self._transport)
        workspace.end()
        result = _read_result(run_folder)
        if result is None:
            raise _Lost(f"The run ended with {_exit_words(code, run_folder / LOG_FILE)} and left no result.")
        result = workspace.result(result)
        if result.error is not None:
            self._close(FAILED, with_remedies(result.error, result.remedies))
            return
        run_identity.check_run(self.control, self.lease.project, job)
        publishing.settle(self.control, self.lease, result, workspace)
        logger.info("job succeeded", extra={"job": self.lease.job, "attempt": self.lease.epoch})

    def _begin(self) -> float:
        """Make a PENDING job RUNNING with an experiment, and a PAUSED one RUNNING. Returns the job's deadline on this
        process's monotonic clock."""
        lease = self.lease
        with self.control.database.transaction() as connection:
            row = leases.hold(connection, lease)
            now = self.control.database.now(connection)
            if row.state == str(PENDING):
                name = insert_experiment(connection, row, now)
                advance(connection, row, RUNNING, now, {"experiment": name, "tuningJobState": _PROCESSING})
            elif row.state == str(PAUSED):
                advance(connection, row, RUNNING, now, {"error": None})
            words = "The run started." if lease.epoch == 1 else f"Run {lease.epoch} took the job over."
            events.record(connection, lease.project, lease.job, lease.epoch, now, "started", words)
        logger.info("run started", extra={"job": lease.job, "attempt": lease.epoch})
        limit = self.control.limits.max_job_seconds
        started = job_of(row).start_time  # of the first attempt; none before it
        begun = started.timestamp() if started is not None else now
        return time.monotonic() + begun + limit - now if limit else math.inf

    def _watch(self, workspace: Workspace, spec: RunSpec, run: RunTransport) -> int:
        """Follow the run to its end; returns its exit code."""
        gathered, since_write = PendingProgress(SPECS[spec.method]), 0.0
        most = self.control.limits.max_preparation_seconds
        prepared_by = time.monotonic() + most if most else math.inf
        while True:
            self._obey()
            if time.monotonic() > prepared_by:
                raise DeadlineExceeded(
                    f"The run took longer than {most:g} seconds to read its base and its data. Check the chat template"
                    " of a base of your own, or have the administrator raise max_preparation_seconds."
                )
            code = run.poll()  # before reading, so that the last lines are not missed
            for line in run.lines(f"{spec.run_folder}/{PROGRESS_FILE}"):
                progressed = Progress.model_validate_json(line)
                gathered.add(workspace.redacted(progressed))
                if progressed.phase == "TUNING":
                    prepared_by = math.inf
                elif progressed.kind == "note" and most:  # such as a part of the answers of a teacher
                    prepared_by = max(prepared_by, time.monotonic() + most)
            workspace.check()
            if code is not None or since_write >= WRITE_SECONDS:
                since_write = 0.0
                _fetch(spec, run)
                workspace.keep()
                progress.write(self.control.database, self.lease, gathered)
                while gathered.checkpoints and not spec.export_last_checkpoint_only:
                    record = gathered.checkpoints.pop(0)
                    publishing.publish_checkpoint(self.control, self.lease, record, workspace)
                    self._obey()
                while gathered.assessments:
                    evaluations.publish(self.control, self.lease, gathered.assessments.pop(0), workspace)
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
        """End the job without a model; a job that was cancelled meanwhile ends as cancelled."""
        with self.control.database.transaction() as connection:
            row = leases.hold(connection, self.lease)
            if row.state == str(CANCELLING):
                to, status = CANCELLED, CANCELLED_STATUS
            now = self.control.database.now(connection)
            advance(connection, row, to, now, {"error": status})
            if status["code"] == DeadlineExceeded.code:
                report(connection, "aiplatform.tuningJobs.cancel", row.project, job_of(row).name)
            kind = "cancelled" if to is CANCELLED else "failed"
            events.record(
                connection, row.project, row.id, self.lease.epoch, now, kind, str(status["message"]), {"error": status}
            )
        logger.info("job ended", extra={"job": self.lease.job, "state": str(to)})

    def _wait_for_room(self, words: str) -> None:
        """The disk is full: check again after a pause. Costs no attempt, and has one event, not one per check."""
        lease, database = self.lease, self.control.database
        with database.transaction() as connection:
            row = leases.hold(connection, lease)
            now = database.now(connection)
            if events.last_kind(connection, lease.project, lease.job) != "waiting":
                logger.warning("job waits for disk space", extra={"job": lease.job})
                events.record(connection, lease.project, lease.job, lease.epoch, now, "waiting", words)
            amend(connection, row, now, {"tuningJobState": queue.WAITING_FOR_CAPACITY})
        leases.release(database, lease, pause_seconds=self.control.pauses.room_seconds)

    def _wait_for_key(self, refusal: KeyUnusable) -> None:
        """The key is disabled: the job pauses until it is enabled. Costs no attempt, and has one event."""
        lease, database = self.lease, self.control.database
        with database.transaction() as connection:
            row = leases.hold(connection, lease)
            now = database.now(connection)
            if row.state == str(RUNNING):
                words = f"The job stopped: {refusal.message} It continues when the key is enabled."
                advance(connection, row, PAUSED, now, {"error": FailedPrecondition(words).to_status()})
                events.record(connection, lease.project, lease.job, lease.epoch, now, "paused", words)
                logger.warning("job paused", extra={"job": lease.job, "reason": refusal.message})
            elif events.last_kind(connection, lease.project, lease.job) != "waiting":
                words = f"The job waits for its key: {refusal.message}"
                events.record(connection, lease.project, lease.job, lease.epoch, now, "waiting", words)
        leases.release(database, lease, pause_seconds=self.control.limits.lease_seconds / 2)

    def _stop_run(self, grace_seconds: float) -> None:
        """Stop the run; its files so far are kept for the next attempt."""
        if self._transport is not None and self._spec is not None:
            self._transport.stop(grace_seconds)
            try:
                _fetch(self._spec, self._transport)
            except OSError as fault:  # the next attempt continues from what was fetched before
                logger.warning("run not fetched", extra={"job": self.lease.job, "reason": str(fault)})
        if self._workspace is not None:
            self._workspace.end()

    def _give_back(self, reason: str) -> None:
        """The run was lost: retry after a pause, or fail when attempts are used up."""
        limits, losses = self.control.limits, self.lease.losses + 1
        logger.warning("run lost", extra={"job": self.lease.job, "attempt": self.lease.epoch, "reason": reason})
        if losses >= limits.max_attempts or self.lease.epoch >= MOST_EPOCHS or self._is_cancelling():
            words = f"The service lost the run {losses} times; this is no fault of your data. {reason}"
            self._close(FAILED, Internal(words).to_status())
            return
        pause = self.control.pauses.retry_seconds * 2 ** (losses - 1)
        with self.control.database.transaction() as connection:
            row = leases.hold(connection, self.lease)
            now = self.control.database.now(connection)
            words = f"{reason} It is tried again in {pause:g} seconds."
            events.record(connection, row.project, row.id, self.lease.epoch, now, "lost", words)
        leases.release(self.control.database, self.lease, pause_seconds=pause, is_lost=True)


def _fetch(spec: RunSpec, run: RunTransport) -> None:
    """Have here what the run has written until now. Raises OSError."""
    for name in spec.files().write:
        run.fetch(name)


def _read_result(run_folder: Path) -> RunResult | None:
    try:
        data = (run_folder / RESULT_FILE).read_bytes()
    except FileNotFoundError:
        return None
    return RunResult.model_validate_json(data)


def _exit_words(code: int, log: Path) -> str:
    """How a run ended; for an exception only its type, since its message may have the user's data."""
    if code < 0:
        return f"signal {-code}"
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 10_000))
        kinds = _EXCEPTION.findall(file.read().decode(errors="replace"))
    return f"exit code {code}" + (f" ({kinds[-1]})" if kinds else "")


_EXCEPTION = re.compile(r"^([A-Za-z_][\w.]*(?:Error|Exception))\b(?::|$)", re.MULTILINE)
