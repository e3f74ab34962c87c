"""The loop of operations that a program of the engine executes: claims one under a lease, runs the program, publishes
the output.

Any number of runners can share a database. When one dies, another starts its operation again. The output is stored
before the operation is marked as done. An `OperationWork` defines the work of one kind of operation.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar
from uuid import uuid4

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from sarto.contract.export_run import ExportProgress
from sarto.contract.places import Places
from sarto.contract.programs import Spec
from sarto.contract.run_folder import (
    LOG_FILE,
    OPERATION_PROGRESS_FILE,
    RESULT_FILE,
    SPEC_FILE,
    WORKSPACE,
    in_workspace,
)
from sarto.control import operations
from sarto.control.access import quoting, run_identity
from sarto.control.context import AnyRow, Control
from sarto.control.executors.executor import Executor, Launch, RunTransport
from sarto.control.jobs.states import Fenced
from sarto.control.operations import OperationRun
from sarto.control.runs import disk_space
from sarto.control.scheduling.leases import Claims, Leases
from sarto.errors import ResourceExhausted, SartoError, Unavailable
from sarto.system.files import write_whole
from sarto.system.loop import Loop

logger = logging.getLogger(__name__)
POLL_SECONDS, IDLE_SECONDS = 0.2, 1.0
"""Between looks at a program that runs, and between looks for another server's operations: a commit of this process
wakes the loop."""
STOP_SECONDS = 3.0
"""Time for which `stop` waits until the running operations are released."""
AT_ONCE, MOST_IN_HAND = 2, 1
"""Concurrent operations of a kind on one server, and of one project."""
MAX_EPOCHS = 3
"""Most starts of an operation; further losses fail it."""


@dataclass(frozen=True)
class OperationOutcome:
    """The output of a program: the operation's response, additions to its metadata, and a function that names its
    files.

    That function is called in the transaction that ends the operation, so that an operation that is started again has
    named no file. It returns the replaced content."""

    response: dict[str, Any]
    metadata: dict[str, Any]
    name_files: Callable[[Connection], list[str]] = lambda _: []


@dataclass
class _Heartbeat:
    """Time of the last extension of an operation's lease, and the last stored progress."""

    time: float = 0.0
    progress: str = ""


Run = TypeVar("Run", bound=OperationRun)


class OperationWork(Protocol[Run]):
    """`kind` names it in messages, folders and logs. `run` is the data stored with the operation at create."""

    kind: str
    run_type: type[Run]

    def spec(self, project: str, run: Run, folder: Path, places: Places) -> Spec:
        """The spec of the program. Puts its inputs into `folder`, which is its workspace. Raises SartoError."""
        ...

    def serving(self, run: Run, program: RunTransport) -> AbstractContextManager[None]:
        """A context that is open while the program runs."""
        ...

    def publish(self, project: str, run: Run, folder: Path, result: bytes) -> AbstractContextManager[OperationOutcome]:
        """Store the output; within the block its files can be named. Raises SartoError."""
        ...


class OperationRunner(Generic[Run]):
    """Call `start` and `stop` once each; `stop` ends running operations, which another runner then starts again.
    Projects take turns, and one has at most `MOST_IN_HAND` operations here."""

    def __init__(self, control: Control, table: sa.Table, executor: Executor, work: OperationWork[Run]) -> None:
        self._control, self._executor = control, executor
        self._of = work
        self._leases = Leases(table)
        self._claims = Claims(control, self._leases, uuid4().hex, MOST_IN_HAND)
        self._loop = Loop(f"{work.kind}s", self._take_one, IDLE_SECONDS, least=POLL_SECONDS, threads=AT_ONCE)

    def start(self) -> None:
        self._control.database.watch(self._loop.wake)
        self._loop.start()

    def stop(self) -> None:
        self._loop.stop(STOP_SECONDS)

    def _take_one(self) -> float | None:
        row = self._claims.take()
        if row is None:
            return None
        self._loop.wake()  # while this thread works, another looks
        try:
            with run_identity.on_behalf(self._control, row.project, row.asked_by, f"operations/{row.operation}"):
                self._work(row)
        finally:
            self._claims.give_back(row)
        return 0.0

    def _work(self, row: AnyRow) -> None:
        """From claim to the end of the operation; returns silently when the lease is lost."""
        run = self._of.run_type.model_validate_json(row.run)
        folder = self._control.home / "runs" / f"{self._of.kind}-{row.operation}"
        if run.kms_key:  # its input is encrypted, and its output will be
            folder = self._control.sealer.private.folder / folder.name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        try:
            if row.lease_epoch > MAX_EPOCHS:
                raise Unavailable(f"The {self._of.kind} was begun {MAX_EPOCHS} times and lost its process each time.")
            result = self._run(row, run, folder)
            if result is None:
                return
            with self._of.publish(row.project, run, folder, result) as outcome:
                facts = {**outcome.metadata, "progressPercentage": 100}
                self._end(row, {"response": outcome.response}, facts, outcome.name_files)
        except OSError as error:
            if not disk_space.is_full(error):
                raise
            full = ResourceExhausted(f"The disk of {folder} is full; free space and try again.")
            self._end(row, {"error": full.to_status()}, {})
        except SartoError as error:
            status = error.to_status()
            self._end(row, {"error": quoting.status_without_quotes(status) if run.kms_key else status}, {})
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _run(self, row: AnyRow, run: Run, folder: Path) -> bytes | None:
        """The program's result; None when the lease was lost or the service stops. Raises SartoError."""
        places = self._control.places_of(folder, folder)
        spec = self._of.spec(row.project, run, folder, places)
        places.located(spec)  # raises where a name is none
        write_whole(folder / SPEC_FILE, spec.model_dump_json(indent=1).encode())
        log = folder / LOG_FILE if run.kms_key else self._control.home / "logs" / f"{self._of.kind}s.log"
        handle = f"{self._of.kind}-{row.operation}-{row.lease_epoch}"
        program = self._executor.start(Launch(handle, in_workspace(SPEC_FILE), places, log))
        beat = _Heartbeat()
        try:
            with self._of.serving(run, program):
                while (code := program.poll()) is None:
                    if self._loop.stopping.wait(POLL_SECONDS):
                        self._let_go(row)
                        return None
                    program.fetch(in_workspace(OPERATION_PROGRESS_FILE))
                    self._beat(row, folder, beat)
            program.fetch(WORKSPACE)
        except Fenced:
            return None
        finally:
            program.stop(0.0)
        if not (folder / RESULT_FILE).exists():
            raise Unavailable(f"The {self._of.kind}'s process ended unexpectedly (exit code {code}; see {log}).")
        return (folder / RESULT_FILE).read_bytes()

    def _beat(self, row: AnyRow, folder: Path, beat: _Heartbeat) -> None:
        """Extend the lease after a third of it, and store progress. Raises Fenced when the lease is over."""
        progress = folder / OPERATION_PROGRESS_FILE
        text = progress.read_text() if progress.exists() else ""
        until = self._control.limits.lease_seconds
        if text == beat.progress and time.monotonic() - beat.time < until / 3:
            return
        beat.time = time.monotonic()
        with self._control.database.transaction() as connection:
            now = self._control.database.now(connection)
            self._leases.extend(connection, self._leases.of(row), now + until)
            if text and text != beat.progress:
                report = ExportProgress.model_validate_json(text)
                changes = {"progressPercentage": report.percent, "progressMessage": report.message}
                operations.amend(connection, row.project, row.operation, changes, now)
        beat.progress = text

    def _let_go(self, row: AnyRow) -> None:
        """Give it back. The epoch goes back too: this claim is not a loss that counts to MAX_EPOCHS."""
        values = {"lease_owner": None, "lease_until": None, "lease_epoch": row.lease_epoch - 1}
        with self._control.database.transaction() as connection:
            self._leases.change(connection, self._leases.of(row), **values)

    def _end(
        self,
        row: AnyRow,
        outcome: dict[str, Any],
        metadata: dict[str, Any],
        name_files: Callable[[Connection], list[str]] = lambda _: [],
    ) -> None:
        """Write the operation's result, unless another runner has it, or its user cancelled it."""
        replaced = list[str]()
        with self._control.database.transaction() as connection:
            if self._leases.remove(connection, self._leases.of(row)):
                replaced = name_files(connection)
                now = self._control.database.now(connection)
                operations.amend(connection, row.project, row.operation, metadata, now)
                operations.finish(connection, row.project, row.operation, outcome)
                facts = {"work": self._of.kind, "operation": row.operation, "failed": "error" in outcome}
                logger.info("operation ended", extra=facts)
        for content in replaced:
            self._control.buckets.collect(content)
