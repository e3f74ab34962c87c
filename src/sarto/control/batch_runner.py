"""The loop behind batchPredictionJobs: takes a job under a lease, asks the model row by row, writes predictions.jsonl.

Answers go to a local file in the order of the rows as they come; after a crash the next runner goes on behind its last
whole line. Knows no generator: it is handed a function that answers one request.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import sqlalchemy as sa

from sarto.control.batch_predictions import CANCELLED_STATUS, check_rights, write
from sarto.control.context import AnyRow, Control
from sarto.control.events import timestamp
from sarto.control.resolution import Deployed
from sarto.errors import InvalidArgument, SartoError
from sarto.names import parse_gs_uri
from sarto.schema.batch_predictions import BatchPredictionJob
from sarto.schema.tuning_jobs import JobState
from sarto.schema.wire import now as wall_time
from sarto.storage.tables import batch_prediction_job as table

logger = logging.getLogger(__name__)

Answer = Callable[[Deployed, dict[str, Any]], Awaitable[dict[str, Any]]]
"""One generateContent request of JSON to its response; raises SartoError."""
AT_ONCE = 16
POLL_SECONDS = 0.5
TAKEABLE = ("JOB_STATE_PENDING", "JOB_STATE_RUNNING", "JOB_STATE_CANCELLING")


class Lost(Exception):
    """The lease is over: another runner has the job, or it is gone."""


class BatchRunner:
    def __init__(self, control: Control, answer: Answer, owner: str) -> None:
        self._control, self._answer, self._owner = control, answer, owner

    async def run(self) -> None:
        """Work until cancelled. A fault of the machinery is logged and does not end the loop."""
        while True:
            try:
                row = await asyncio.to_thread(self._claim)
                if row is not None:
                    await self._work(row)
                    continue
            except Exception:
                logger.exception("batch prediction failed")
            await asyncio.sleep(POLL_SECONDS)

    async def _work(self, row: AnyRow) -> None:
        """One job from claim to end. When cancelled or fenced, the work stops and the local file stays or goes."""
        working = asyncio.ensure_future(self._predict(row))
        beating = asyncio.ensure_future(self._beat(row))
        try:
            await asyncio.wait({working, beating}, return_when=asyncio.FIRST_COMPLETED)
            if not working.done() and not beating.exception():
                working.cancel()
                await asyncio.gather(working, return_exceptions=True)
                await self._end(row, JobState.JOB_STATE_CANCELLED, await asyncio.to_thread(self._so_far, row))
                return
            if not working.done():
                return
            try:
                changes = working.result()
                await self._end(row, JobState.JOB_STATE_SUCCEEDED, changes)
            except SartoError as error:
                await self._end(row, JobState.JOB_STATE_FAILED, {"error": error.to_status()})
        finally:
            for task in (working, beating):
                task.cancel()
            await asyncio.gather(working, beating, return_exceptions=True)

    async def _beat(self, row: AnyRow) -> None:
        """Prolong the lease until the user cancels; raises Lost when it is no longer ours."""
        while await asyncio.to_thread(self._prolong, row):
            await asyncio.sleep(POLL_SECONDS)

    async def _predict(self, row: AnyRow) -> dict[str, Any]:
        """Answer every row and store the file; gives the changes of the ended job."""
        job = BatchPredictionJob.read(orjson.loads(row.resource))
        await asyncio.to_thread(check_rights, self._control, row.project, job)
        deployed = Deployed(**orjson.loads(row.run))
        partial = self._partial(row)
        partial.parent.mkdir(parents=True, exist_ok=True)
        done = len(await asyncio.to_thread(_whole_lines, partial))
        rows = await asyncio.to_thread(lambda: list(self._rows(job, row.project)))
        with partial.open("ab") as file:
            async for line in self._in_order(deployed, rows[done:]):
                file.write(orjson.dumps(line) + b"\n")
                file.flush()
        outcome = await asyncio.to_thread(self._outcome, job, row, len(rows))
        if rows and outcome["completionStats"]["successfulCount"] == "0":
            first = orjson.loads(partial.read_bytes().splitlines()[0])["status"]
            raise InvalidArgument(f"All {len(rows)} rows failed; the first: {first}")
        return outcome

    def _so_far(self, row: AnyRow) -> dict[str, Any]:
        """The changes of a cancelled job: what was answered until then is stored, if it still may be."""
        job = BatchPredictionJob.read(orjson.loads(row.resource))
        if not self._partial(row).exists():
            return {}
        try:
            return self._outcome(job, row, sum(1 for _ in self._rows(job, row.project)))
        except SartoError as error:
            logger.warning("answers of a cancelled job were not stored", extra={"job": row.id, "reason": str(error)})
            return {}

    def _outcome(self, job: BatchPredictionJob, row: AnyRow, count: int) -> dict[str, Any]:
        """Store the answers that are there; gives where, and how many of the `count` rows they are."""
        check_rights(self._control, row.project, job)
        lines = _whole_lines(self._partial(row))
        directory = self._publish(job, row)
        failed = sum(1 for line in lines if orjson.loads(line)["status"])
        numbers = (len(lines) - failed, failed, count - len(lines))
        stats = zip(("successfulCount", "failedCount", "incompleteCount"), map(str, numbers), strict=True)
        return {"outputInfo": {"gcsOutputDirectory": directory}, "completionStats": dict(stats)}

    def _partial(self, row: AnyRow) -> Path:
        """Answers of a model under a key lie in the private folder: after a crash they are asked for again."""
        is_keyed = bool(Deployed(**orjson.loads(row.run)).kms_key)
        place = self._control.sealer.private.folder if is_keyed else self._control.home / "runs"
        return place / f"batch-{row.id}" / "predictions.jsonl"

    async def _in_order(self, deployed: Deployed, rows: list[bytes]) -> AsyncIterator[dict[str, Any]]:
        """Output lines in the order of the rows, some requests at once."""
        waiting: list[asyncio.Task[dict[str, Any]]] = []
        try:
            for raw in rows:
                waiting.append(asyncio.ensure_future(self._one(deployed, raw)))
                if len(waiting) >= AT_ONCE:
                    yield await waiting.pop(0)
            while waiting:
                yield await waiting.pop(0)
        finally:
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)

    async def _one(self, deployed: Deployed, raw: bytes) -> dict[str, Any]:
        line: dict[str, Any] = {"status": "", "processed_time": "", "request": None, "response": {}}
        try:
            row = orjson.loads(raw)
            if not isinstance(row, dict) or not isinstance(row.get("request"), dict):
                line["request"] = row
                raise SartoError('the row is not a JSON object with a "request" object')
            line = row | line | {"request": row["request"]}
            line["response"] = await self._answer(deployed, row["request"])
        except (SartoError, orjson.JSONDecodeError) as error:
            line["status"] = f"Bad Request: {error}"
        line["processed_time"] = wall_time().isoformat()
        return line

    def _rows(self, job: BatchPredictionJob, project: str) -> Iterator[bytes]:
        assert job.input_config is not None and job.input_config.gcs_source is not None
        for uri in job.input_config.gcs_source.uris:
            with self._control.buckets.open(self._control.buckets.resolve(uri, project=project)) as file:
                yield from (line for line in file if line.strip())

    def _publish(self, job: BatchPredictionJob, row: AnyRow) -> str:
        """Store the file below the prefix the user gave; gives the folder's URI."""
        assert job.output_config is not None and job.output_config.gcs_destination is not None
        bucket, name = parse_gs_uri(job.output_config.gcs_destination.output_uri_prefix, "output_uri_prefix")
        folder = f"{name.rstrip('/')}/prediction-model-{timestamp(row.create_time)}".lstrip("/")
        self._control.buckets.put_file(
            bucket, f"{folder}/predictions.jsonl", self._partial(row), content_type="application/jsonl",
            project=row.project, kms_key=Deployed(**orjson.loads(row.run)).kms_key,
        )  # fmt: skip
        return f"gs://{bucket}/{folder}"

    def _claim(self) -> AnyRow | None:
        database = self._control.database
        with database.reading() as connection:
            if self._next(database.now(connection), connection) is None:
                return None
        with database.transaction() as connection:
            now = database.now(connection)
            row = self._next(now, connection)
            if row is None:
                return None
            state = row.state if row.state == JobState.JOB_STATE_CANCELLING else str(JobState.JOB_STATE_RUNNING)
            resource = {"startTime": timestamp(now)} | orjson.loads(row.resource) | {"state": state}
            resource["updateTime"] = timestamp(now)
            connection.execute(
                table.update()
                .where(table.c.project == row.project, table.c.id == row.id)
                .values(
                    state=state,
                    resource=orjson.dumps(resource).decode(),
                    lease_owner=self._owner,
                    lease_epoch=row.lease_epoch + 1,
                    lease_until=now + self._control.limits.lease_seconds,
                )
            )
            return self._row(row, connection)

    def _next(self, now: float, connection: sa.Connection) -> AnyRow | None:
        free = sa.or_(table.c.lease_until.is_(None), table.c.lease_until < now)
        query = sa.select(table).where(table.c.state.in_(TAKEABLE), free).order_by(table.c.create_time).limit(1)
        return connection.execute(query.with_for_update(skip_locked=True)).first()

    def _row(self, row: AnyRow, connection: sa.Connection) -> AnyRow | None:
        return connection.execute(sa.select(table).where(table.c.project == row.project, table.c.id == row.id)).first()

    def _prolong(self, row: AnyRow) -> bool:
        """False when the user has cancelled. Raises Lost."""
        database = self._control.database
        with database.transaction() as connection:
            until = database.now(connection) + self._control.limits.lease_seconds
            held = connection.execute(
                table.update()
                .where(table.c.project == row.project, table.c.id == row.id, table.c.lease_epoch == row.lease_epoch)
                .values(lease_until=until)
            )
            found = self._row(row, connection)
            if held.rowcount != 1 or found is None:
                raise Lost(row.id)
            return not found.cancel_requested

    async def _end(self, row: AnyRow, state: JobState, changes: dict[str, Any]) -> None:
        if await asyncio.to_thread(self._write_end, row, state, changes):
            logger.info("batch prediction ended", extra={"job": row.id, "state": str(state)})
            partial = self._partial(row)
            partial.unlink(missing_ok=True)
            if partial.parent.exists():
                partial.parent.rmdir()

    def _write_end(self, row: AnyRow, state: JobState, changes: dict[str, Any]) -> bool:
        database = self._control.database
        with database.transaction() as connection:
            found = self._row(row, connection)
            if found is None or found.lease_epoch != row.lease_epoch:
                return False
            now = database.now(connection)
            if found.cancel_requested:
                state, changes = JobState.JOB_STATE_CANCELLED, changes | {"error": CANCELLED_STATUS}
            return write(connection, found, now, state, changes | {"endTime": timestamp(now)})


def _whole_lines(path: Path) -> list[bytes]:
    """The lines answered so far, an earlier attempt's too; a torn last one is cut off."""
    if not path.exists():
        return []
    raw = path.read_bytes()
    whole = raw[: raw.rfind(b"\n") + 1]
    with path.open("r+b") as file:
        file.truncate(len(whole))
    return whole.splitlines()
