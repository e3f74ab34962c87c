"""The loop behind models:export: takes an export under a lease, runs the engine's program on it, publishes its files.

Any number may share a database; one that dies is followed by another, which begins that export anew. Files are stored
before the operation says that it is done. Holds no tensors.
"""

from __future__ import annotations

import logging
import shutil
import threading
import time
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any
from uuid import uuid4

import orjson
import sqlalchemy as sa

from sarto.control import operations
from sarto.control.context import AnyRow, Control
from sarto.control.executors import Executor
from sarto.control.run_specs import write_whole
from sarto.errors import FailedPrecondition, SartoError, Unavailable
from sarto.schema.runs import ExportProgress, ExportResult, ExportSpec
from sarto.storage.tables import model_export as table

logger = logging.getLogger(__name__)
POLL_SECONDS = 0.2
HELD_OUT_ROWS = 4
MAX_EPOCHS = 3
"""Times an export is begun before a loss of machinery fails it."""
SHIPPED = "the sample that Sarto ships (the job's own data is gone)"
RESPONSE = "type.googleapis.com/google.cloud.aiplatform.v1.ExportModelResponse"


class ExportRunner:
    """`start` and `stop` once each; `stop` ends the export in hand, which another runner then begins anew."""

    def __init__(self, control: Control, executor: Executor, sample: Sequence[bytes]) -> None:
        """`sample`: dataset rows to compare on where a job's own data is gone."""
        self._control, self._executor, self._sample, self._owner = control, executor, sample, uuid4().hex
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="exports", daemon=True)

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
                logger.exception("export failed")

    def _work(self, row: AnyRow) -> None:
        """From claim to the end of the operation; lets go without a word when the lease is lost."""
        folder = self._control.home / "runs" / f"export-{row.operation}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        run = orjson.loads(row.run)
        try:
            if row.lease_epoch > MAX_EPOCHS:
                raise Unavailable(f"The export was begun {MAX_EPOCHS} times and each time lost its process.")
            result = self._run(row, run, folder)
            if result is None:
                return
            self._publish(row, run, folder, result)
            comparison = result.comparison.model_dump() if result.comparison else None
            self._end(row, {"response": {"@type": RESPONSE}}, {"comparison": comparison, "progressPercentage": 100})
        except SartoError as error:
            self._end(row, {"error": error.to_status()}, {})
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _run(self, row: AnyRow, run: dict[str, Any], folder: Path) -> ExportResult | None:
        """The program's result; None when the lease went or the service stops. Raises SartoError."""
        spec_file, handle = folder / "spec.json", f"export-{row.operation}-{row.lease_epoch}"
        write_whole(spec_file, self._spec(row, run, folder).model_dump_json(indent=1).encode())
        log = self._control.home / "logs" / "exports.log"
        self._executor.start(handle, spec_file, log)
        said = ""
        try:
            while (code := self._executor.poll(handle)) is None:
                if self._stopping.wait(POLL_SECONDS):
                    self._let_go(row)
                    return None
                said = self._beat(row, folder, said)
        except operations.Ended:
            return None
        finally:
            self._executor.stop(handle, 0.0)
        if not (folder / "result.json").exists():
            raise Unavailable(f"The export process ended unexpectedly (exit code {code}; see {log}).")
        result = ExportResult.model_validate_json((folder / "result.json").read_bytes())
        if result.error is not None:
            raise FailedPrecondition(result.error["message"], result.error.get("details", []))
        return result

    def _spec(self, row: AnyRow, run: dict[str, Any], folder: Path) -> ExportSpec:
        if not Path(run["adapterFolder"]).is_dir():
            raise FailedPrecondition("The model was deleted before it was exported.")
        control, job = self._control, run["jobResource"]
        base = control.base(run["weights"])
        entry = control.catalog.find(run["baseModel"])
        uri = self._hold_out(row.project, run, folder / "held_out.jsonl")
        tuned = job.get("supervisedTuningSpec", {})
        data = control.job_folder(run["job"]) / "data" / "training.json"
        metadata = job.get("tuningJobMetadata", {})
        return ExportSpec(
            model=run["model"],
            title=run["title"],
            format=run["format"],
            base=base,
            adapter_folder=run["adapterFolder"],
            folder=str(folder),
            held_out=str(folder / "held_out.jsonl"),
            held_out_uri=uri,
            data_format="translation" if entry.rules.kind == "translation" and uri != SHIPPED else "auto",
            license=entry.weights.license,
            card={
                "Tuning job": job.get("name", ""),
                "Tuned from": run["baseModel"],
                "Checkpoint": f"{run['checkpoint']}, after step {run['step']}",
                "Training data": tuned.get("trainingDatasetUri", ""),
                "Training data, sha256": orjson.loads(data.read_bytes())["digest"] if data.exists() else "",
                "Hyperparameters": metadata.get("effectiveParameters", {"rank": run["rank"]}),
                "Validation": run["origin"].get("evaluation"),
                "Parity of training and serving": run["origin"].get("certificate"),
            },
            threads=control.limits.threads,
        )

    def _hold_out(self, project: str, run: dict[str, Any], target: Path) -> str:
        """A few rows of the job's validation data, else of its training data, else of ours; says which."""
        data = self._control.job_folder(run["job"]) / "data"
        for name in ("validation", "training"):
            record, source = data / f"{name}.json", data / f"{name}.jsonl"
            if record.exists() and source.exists():
                with source.open("rb") as file:
                    rows = [line for line in islice(file, 64) if line.strip() and len(line) < 20_000]
                if rows:
                    target.write_bytes(b"\n".join(row.rstrip(b"\n") for row in rows[:HELD_OUT_ROWS]))
                    return str(orjson.loads(record.read_bytes())["uri"])
        target.write_bytes(b"\n".join(self._sample[:HELD_OUT_ROWS]))
        return SHIPPED

    def _publish(self, row: AnyRow, run: dict[str, Any], folder: Path, result: ExportResult) -> None:
        for name in result.files:
            self._control.buckets.put_file(
                run["bucket"], f"{run['folder']}/{name}", folder / "files" / name, project=row.project
            )

    def _claim(self) -> AnyRow | None:
        database = self._control.database
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
        free = sa.or_(table.c.lease_until.is_(None), table.c.lease_until < now)
        return sa.select(table).where(free).order_by(table.c.create_time).limit(1)

    def _one(self, statement: Any, row: AnyRow) -> Any:
        return statement.where(table.c.project == row.project, table.c.operation == row.operation)

    def _beat(self, row: AnyRow, folder: Path, said: str) -> str:
        """Prolong the lease when a third of it is gone, pass progress on. Raises Ended when it is not ours any more."""
        progress = folder / "progress.json"
        text = progress.read_text() if progress.exists() else ""
        until = self._control.limits.lease_seconds
        if text == said and time.monotonic() - self._beaten < until / 3:
            return said
        self._beaten = time.monotonic()
        with self._control.database.transaction() as connection:
            now = self._control.database.now(connection)
            held = connection.execute(
                self._one(table.update(), row)
                .where(table.c.lease_epoch == row.lease_epoch)
                .values(lease_until=now + until)
            )
            if held.rowcount != 1:
                raise operations.Ended
            if text and text != said:
                found = ExportProgress.model_validate_json(text)
                changes = {"progressPercentage": found.percent, "progressMessage": found.message}
                operations.amend(connection, row.project, row.operation, changes, now)
        return text

    _beaten = 0.0

    def _let_go(self, row: AnyRow) -> None:
        with self._control.database.transaction() as connection:
            held = self._one(table.update(), row).where(table.c.lease_epoch == row.lease_epoch)
            connection.execute(held.values(lease_owner=None, lease_until=None, lease_epoch=row.lease_epoch - 1))

    def _end(self, row: AnyRow, outcome: dict[str, Any], metadata: dict[str, Any]) -> None:
        """The operation's last word, unless another runner has the export, or its user cancelled it."""
        with self._control.database.transaction() as connection:
            gone = connection.execute(
                self._one(table.delete(), row).where(table.c.lease_epoch == row.lease_epoch)
            ).rowcount
            if gone:
                now = self._control.database.now(connection)
                operations.amend(connection, row.project, row.operation, metadata, now)
                operations.finish(connection, row.project, row.operation, outcome)
                logger.info("export ended", extra={"operation": row.operation, "failed": "error" in outcome})
