"""The loop behind operations that a program of the engine does: takes one under a lease, runs the program on its
folder, publishes what it left.

Any number may share a database; one that dies is followed by another, which begins that operation anew. What it made is
stored before the operation says that it is done. What the work is, an `OperationWork` knows. Holds no tensors.
"""

from __future__ import annotations

import logging
import shutil
import threading
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

import orjson
import sqlalchemy as sa
from pydantic import BaseModel

from sarto.control import disk, operations, sealing
from sarto.control.context import AnyRow, Control
from sarto.control.executors import Executor
from sarto.control.run_specs import write_whole
from sarto.errors import ResourceExhausted, SartoError, Unavailable
from sarto.schema.runs import ExportProgress

logger = logging.getLogger(__name__)
POLL_SECONDS = 0.2
MAX_EPOCHS = 3
"""Times an operation is begun before a loss of machinery fails it."""
PROGRESS_FILE, RESULT_FILE = "progress.json", "result.json"


class OperationWork(Protocol):
    """`kind` names it, in words as in folders and logs. `run` is what was kept when it was asked."""

    kind: str

    def spec(self, project: str, run: dict[str, Any], folder: Path) -> BaseModel:
        """What the program is given. Raises SartoError."""
        ...

    def serving(self, run: dict[str, Any], folder: Path) -> AbstractContextManager[None]:
        """What is done for the program while it runs."""
        ...

    def publish(
        self, project: str, run: dict[str, Any], folder: Path, result: bytes
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Store what it made; gives the operation's response and additions to its metadata. Raises SartoError."""
        ...


class OperationRunner:
    """`start` and `stop` once each; `stop` ends the operation in hand, which another runner then begins anew."""

    def __init__(self, control: Control, table: sa.Table, executor: Executor, work: OperationWork) -> None:
        self._control, self._table, self._executor, self._owner = control, table, executor, uuid4().hex
        self._of = work
        self._beaten = 0.0
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._loop, name=f"{work.kind}s", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join()

    def _loop(self) -> None:
        while not self._stopping.wait(POLL_SECONDS):
            try:
                row = self._claim()
                if row is not None:
                    self._work(row)
            except Exception:
                logger.exception("operation failed", extra={"work": self._of.kind})

    def _work(self, row: AnyRow) -> None:
        """From claim to the end of the operation; lets go without a word when the lease is lost."""
        run = orjson.loads(row.run)
        folder = self._control.home / "runs" / f"{self._of.kind}-{row.operation}"
        if run.get("kmsKey"):  # what it reads is sealed, and what it makes will be
            folder = self._control.sealer.private.folder / folder.name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        try:
            if row.lease_epoch > MAX_EPOCHS:
                raise Unavailable(f"The {self._of.kind} was begun {MAX_EPOCHS} times and each time lost its process.")
            result = self._run(row, run, folder)
            if result is None:
                return
            response, metadata = self._of.publish(row.project, run, folder, result)
            self._end(row, {"response": response}, {**metadata, "progressPercentage": 100})
        except OSError as error:
            if not disk.is_full(error):
                raise
            full = ResourceExhausted(f"The disk of {folder} is full; free space and ask again.")
            self._end(row, {"error": full.to_status()}, {})
        except SartoError as error:
            status = error.to_status()
            self._end(row, {"error": sealing.status_without_quotes(status) if run.get("kmsKey") else status}, {})
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _run(self, row: AnyRow, run: dict[str, Any], folder: Path) -> bytes | None:
        """The program's result; None when the lease went or the service stops. Raises SartoError."""
        spec_file, handle = folder / "spec.json", f"{self._of.kind}-{row.operation}-{row.lease_epoch}"
        write_whole(spec_file, self._of.spec(row.project, run, folder).model_dump_json(indent=1).encode())
        log = folder / "log.txt" if run.get("kmsKey") else self._control.home / "logs" / f"{self._of.kind}s.log"
        self._executor.start(handle, spec_file, log)
        said = ""
        try:
            with self._of.serving(run, folder):
                while (code := self._executor.poll(handle)) is None:
                    if self._stopping.wait(POLL_SECONDS):
                        self._let_go(row)
                        return None
                    said = self._beat(row, folder, said)
        except operations.Ended:
            return None
        finally:
            self._executor.stop(handle, 0.0)
        if not (folder / RESULT_FILE).exists():
            raise Unavailable(f"The {self._of.kind}'s process ended unexpectedly (exit code {code}; see {log}).")
        return (folder / RESULT_FILE).read_bytes()

    def _claim(self) -> AnyRow | None:
        database, table = self._control.database, self._table
        with database.reading() as connection:
            if connection.execute(self._free(database.now(connection))).first() is None:
                return None
        with database.transaction() as connection:
            now = database.now(connection)
            row = connection.execute(self._free(now).with_for_update(skip_locked=True)).first()
            if row is None:
                return None
            connection.execute(
                self._one(table.update(), row).values(
                    lease_owner=self._owner,
                    lease_epoch=row.lease_epoch + 1,
                    lease_until=now + self._control.limits.lease_seconds,
                )
            )
            return connection.execute(self._one(sa.select(table), row)).first()

    def _free(self, now: float) -> sa.Select[Any]:
        until = self._table.c.lease_until
        free = sa.or_(until.is_(None), until < now)
        return sa.select(self._table).where(free).order_by(self._table.c.create_time).limit(1)

    def _one(self, statement: Any, row: AnyRow) -> Any:
        columns = self._table.c
        return statement.where(columns.project == row.project, columns.operation == row.operation)

    def _held(self, statement: Any, row: AnyRow) -> Any:
        return self._one(statement, row).where(self._table.c.lease_epoch == row.lease_epoch)

    def _beat(self, row: AnyRow, folder: Path, said: str) -> str:
        """Prolong the lease when a third of it is gone, pass progress on. Raises Ended when it is not ours any more."""
        progress = folder / PROGRESS_FILE
        text = progress.read_text() if progress.exists() else ""
        until = self._control.limits.lease_seconds
        if text == said and time.monotonic() - self._beaten < until / 3:
            return said
        self._beaten = time.monotonic()
        with self._control.database.transaction() as connection:
            now = self._control.database.now(connection)
            held = connection.execute(self._held(self._table.update(), row).values(lease_until=now + until))
            if held.rowcount != 1:
                raise operations.Ended
            if text and text != said:
                found = ExportProgress.model_validate_json(text)
                changes = {"progressPercentage": found.percent, "progressMessage": found.message}
                operations.amend(connection, row.project, row.operation, changes, now)
        return text

    def _let_go(self, row: AnyRow) -> None:
        values = {"lease_owner": None, "lease_until": None, "lease_epoch": row.lease_epoch - 1}
        with self._control.database.transaction() as connection:
            connection.execute(self._held(self._table.update(), row).values(**values))

    def _end(self, row: AnyRow, outcome: dict[str, Any], metadata: dict[str, Any]) -> None:
        """The operation's last word, unless another runner has it, or its user cancelled it."""
        with self._control.database.transaction() as connection:
            if connection.execute(self._held(self._table.delete(), row)).rowcount:
                now = self._control.database.now(connection)
                operations.amend(connection, row.project, row.operation, metadata, now)
                operations.finish(connection, row.project, row.operation, outcome)
                facts = {"work": self._of.kind, "operation": row.operation, "failed": "error" in outcome}
                logger.info("operation ended", extra=facts)
