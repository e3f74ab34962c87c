"""The loop of batchPredictionJobs: claims a job under a lease, generates row by row, writes predictions.jsonl.

Answers are appended to a local file in the order of the rows. After a crash the next runner continues after the last
whole line. The generator is a function of one request.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextvars import copy_context
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import orjson
import sqlalchemy as sa

from sarto.control.access import quoting, run_identity
from sarto.control.aip.times import timestamp
from sarto.control.batches.batch_predictions import (
    CANCELLED_STATUS,
    BatchRun,
    check_rights,
    job_of,
    may_replace,
    output_folder,
    write,
)
from sarto.control.context import AnyRow, Control
from sarto.control.jobs import dataset_check
from sarto.control.keys import key_use
from sarto.control.models.resolution import ResolvedModel
from sarto.control.scheduling.leases import Claims, Leases
from sarto.conversations.json_text import read_json_text, repeat_json_text
from sarto.errors import InvalidArgument, SartoError
from sarto.names import parse_gs_uri
from sarto.schema.batch_predictions import BatchPredictionJob
from sarto.schema.tuning_jobs import JobState
from sarto.storage.buckets import batch_write
from sarto.storage.database.tables import batch_prediction_job as table
from sarto.system.daemon_threads import DaemonThreads
from sarto.system.loop import Loop

logger = logging.getLogger(__name__)

Answer = Callable[[ResolvedModel, dict[str, Any]], Awaitable[dict[str, Any]]]
"""One generateContent request of JSON to its response; raises SartoError."""
Result = TypeVar("Result")
JOBS_AT_ONCE, MOST_IN_HAND = 4, 2
"""Concurrent jobs on one server, and of one project."""
AT_ONCE = 16
"""Concurrent rows of a job."""
MOST_ROW_BYTES = 2 << 20
MOST_ROWS = 1_000_000
POLL_SECONDS, IDLE_SECONDS = 0.5, 2.0
"""Between looks at a job in hand, and between looks for jobs of other servers: a commit of this process wakes the
loop."""
STOP_SECONDS = 1.0
"""How long the end waits for a claim that is being made."""
LEASES = Leases(table)
TAKEABLE = ("JOB_STATE_PENDING", "JOB_STATE_RUNNING", "JOB_STATE_CANCELLING")


class BatchRunner:
    """Runs several jobs; projects take turns, and one project has at most `MOST_IN_HAND` jobs here."""

    def __init__(self, control: Control, answer: Answer, owner: str) -> None:
        self._control, self._answer = control, answer
        self._room = threading.Semaphore(JOBS_AT_ONCE)
        is_takeable = table.c.state.in_(TAKEABLE)
        self._claims = Claims(control, LEASES, owner, MOST_IN_HAND, is_takeable, changes=_begun)
        self._jobs, self._is_ending = set[asyncio.Task[None]](), False
        # Not the event loop's own pool: leases must be extended under any other load.
        self._threads = DaemonThreads(2 * JOBS_AT_ONCE, "batches")

    async def run(self) -> None:
        """Run until cancelled. A fault of the machine is logged and does not end the loop."""
        claim = partial(self._claim_next, asyncio.get_running_loop())
        claims = Loop("batches-claim", claim, IDLE_SECONDS, least=POLL_SECONDS)
        self._control.database.watch(claims.wake)
        claims.start()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.to_thread(claims.stop, STOP_SECONDS)
            self._is_ending = True
            for job in self._jobs:
                job.cancel()
            await asyncio.gather(*self._jobs, return_exceptions=True)
            self._threads.shutdown(wait=False, cancel_futures=True)

    def _claim_next(self, events: asyncio.AbstractEventLoop) -> float | None:
        """On a thread of its own; seconds to the next claim."""
        if not self._room.acquire(blocking=False):
            return None
        row = None
        try:
            row = self._claims.take()
        finally:
            if row is None:
                self._room.release()
        if row is None:
            return None
        events.call_soon_threadsafe(self._begin, row)
        return 0.0

    def _begin(self, row: AnyRow) -> None:
        if self._is_ending:  # the claim took longer than the stop waits for it: the lease runs out
            return
        job = asyncio.create_task(self._take(row))
        self._jobs.add(job)
        job.add_done_callback(self._jobs.discard)

    async def _take(self, row: AnyRow) -> None:
        name = job_of(row).name
        try:
            with run_identity.on_behalf(self._control, row.project, row.asked_by, name):
                await self._work(row)
        except Exception:
            logger.exception("batch prediction failed", extra={"job": row.id})
        finally:
            self._claims.give_back(row)
            self._room.release()

    async def _in_thread(self, function: Callable[..., Result], *arguments: Any) -> Result:
        call = partial(copy_context().run, function, *arguments)  # the audit log follows a job into its thread
        return await asyncio.get_running_loop().run_in_executor(self._threads, call)

    async def _work(self, row: AnyRow) -> None:
        """One job from claim to end. When it is cancelled or fenced, the work stops."""
        working = asyncio.ensure_future(self._predict(row))
        beating = asyncio.ensure_future(self._beat(row))
        try:
            await asyncio.wait({working, beating}, return_when=asyncio.FIRST_COMPLETED)
            if not working.done() and not beating.exception():
                working.cancel()
                await asyncio.gather(working, return_exceptions=True)
                await self._end(row, partial(self._so_far, row))
                return
            if not working.done():
                return
            try:
                await self._end(row, partial(self._store, row, JobState.JOB_STATE_SUCCEEDED, working.result()))
            except SartoError as error:
                fault = {"error": self.status_of(row, error)}
                await self._end(row, partial(self._write_end, row, JobState.JOB_STATE_FAILED, fault))
        finally:
            for task in (working, beating):
                task.cancel()
            await asyncio.gather(working, beating, return_exceptions=True)

    def status_of(self, row: AnyRow, error: SartoError) -> dict[str, Any]:
        """The job's error as stored in the database; under a key it quotes no data."""
        status = error.to_status()
        return quoting.status_without_quotes(status) if BatchRun.of(row).output_key else status

    async def _beat(self, row: AnyRow) -> None:
        """Extend the lease until the user cancels. Raises Fenced when another runner has the job."""
        while await self._in_thread(self._prolong, row):
            await asyncio.sleep(POLL_SECONDS)

    async def _predict(self, row: AnyRow) -> int:
        """Answer every row into the local file; returns the number of rows."""
        job = job_of(row)
        await self._in_thread(check_rights, self._control, row.project, job)
        run = BatchRun.of(row)
        if run.output_key:
            await self._in_thread(key_use.check, self._control, row.project, run.output_key)
        deployed = replace(run.model, tenant=f"batches/{row.project}")
        answers = self._answers(row)
        answers.parent.mkdir(parents=True, exist_ok=True)
        done = await self._in_thread(_count_whole_lines, answers)
        count = await self._in_thread(_count, self._rows(job, row))
        if count > MOST_ROWS:
            raise InvalidArgument(f"The files have {count:,} rows; at most {MOST_ROWS:,} are answered by one job.")
        with answers.open("ab") as file:
            async for line in self._in_order(deployed, islice(self._rows(job, row), done, None)):
                file.write(orjson.dumps(line) + b"\n")
                file.flush()
        return count

    def _so_far(self, row: AnyRow) -> bool:
        """End a cancelled job and store its finished answers, if its rights still allow it."""
        job, state = job_of(row), JobState.JOB_STATE_CANCELLED
        if self._answers(row).exists():
            try:
                return self._store(row, state, _count(self._rows(job, row)))
            except SartoError as error:
                facts = {"job": row.id, "reason": str(error)}
                logger.warning("answers of a cancelled job were not stored", extra=facts)
        return self._write_end(row, state, {})

    def _store(self, row: AnyRow, state: JobState, count: int) -> bool:
        """Store the answers to the `count` rows in the transaction that ends the job. So a job that is started again
        has none, and existing objects belong to others. Returns False as `_write_end` does."""
        job = job_of(row)
        check_rights(self._control, row.project, job)
        answers, folder = self._answers(row), output_folder(job, row.create_time)
        done = _count_whole_lines(answers)
        with answers.open("rb") as file:
            statuses = (orjson.loads(line)["status"] for line in file)
            first = next(statuses, "")
            failed = bool(first) + sum(1 for status in statuses if status)
        numbers = (done - failed, failed, count - done)
        stats = zip(("successfulCount", "failedCount", "incompleteCount"), map(str, numbers), strict=True)
        changes: dict[str, Any] = {"outputInfo": {"gcsOutputDirectory": folder}, "completionStats": dict(stats)}
        if state is JobState.JOB_STATE_SUCCEEDED and count and done == failed:
            state = JobState.JOB_STATE_FAILED
            error = InvalidArgument(f"All {count} rows failed.\nThe first: {first}")
            changes = {"error": self.status_of(row, error)}
        bucket, name = parse_gs_uri(f"{folder}/predictions.jsonl", "output_uri_prefix")
        is_allowed = may_replace(self._control, row, folder)
        buckets, key = self._control.buckets, BatchRun.of(row).output_key
        with batch_write.receive(buckets, bucket, {name: answers}, key, batch_write.by_suffix) as received:

            def name_files(connection: sa.Connection) -> list[str]:
                return received.write(connection, row.project, may_replace=is_allowed)

            return self._write_end(row, state, changes, name_files)

    def _answers(self, row: AnyRow) -> Path:
        """The local file of answers. With a key it is in the private folder, so after a crash the answers are generated
        again."""
        is_sealed = bool(BatchRun.of(row).output_key)
        parent = self._control.sealer.private.folder if is_sealed else self._control.home / "runs"
        return parent / f"batch-{row.id}" / "predictions.jsonl"

    async def _in_order(self, deployed: ResolvedModel, rows: Iterator[bytes | None]) -> AsyncIterator[dict[str, Any]]:
        """Output lines in the order of the rows, with several concurrent requests and the same number of rows in
        memory."""
        waiting: deque[asyncio.Task[dict[str, Any]]] = deque()
        try:
            while block := await self._in_thread(_next_rows, rows):
                for raw in block:
                    waiting.append(asyncio.create_task(self._one(deployed, raw)))
                    if len(waiting) >= AT_ONCE:
                        yield await waiting.popleft()
            while waiting:
                yield await waiting.popleft()
        finally:
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)

    async def _one(self, deployed: ResolvedModel, raw: bytes | None) -> dict[str, Any]:
        line: dict[str, Any] = {"status": "", "processed_time": "", "request": None, "response": {}}
        try:
            if raw is None:
                raise SartoError(f"the row has more than {MOST_ROW_BYTES:,} bytes")
            row = await self._in_thread(read_json_text, raw)
            shown = await self._in_thread(repeat_json_text, raw)
            if not isinstance(row, dict) or not isinstance(row.get("request"), dict):
                line["request"] = shown
                raise SartoError('the row is not a JSON object with a "request" object')
            line = shown | line | {"request": shown["request"]}
            line["response"] = await self._answer(deployed, row["request"])
        except (SartoError, ValueError) as error:
            line["status"] = f"Bad Request: {error}"
        line["processed_time"] = datetime.now(UTC).isoformat()
        return line

    def _rows(self, job: BatchPredictionJob, row: AnyRow) -> Iterator[bytes | None]:
        """The rows of all files; None for one that is too long."""
        assert job.input_config is not None and job.input_config.gcs_source is not None
        for uri in job.input_config.gcs_source.uris:
            with dataset_check.open_text(self._control, self._control.buckets.held(row.project, row.id, uri)) as file:
                yield from _bounded_lines(file)

    def _prolong(self, row: AnyRow) -> bool:
        """Extend the lease; False when the user has cancelled. Raises Fenced."""
        database, lease = self._control.database, LEASES.of(row)
        with database.transaction() as connection:
            LEASES.extend(connection, lease, database.now(connection) + self._control.limits.lease_seconds)
            return not LEASES.hold(connection, lease).cancel_requested

    async def _end(self, row: AnyRow, write_end: Callable[[], bool]) -> None:
        if await self._in_thread(write_end):
            answers = self._answers(row)
            answers.unlink(missing_ok=True)
            if answers.parent.exists():
                answers.parent.rmdir()

    def _write_end(
        self,
        row: AnyRow,
        state: JobState,
        changes: dict[str, Any],
        name_files: Callable[[sa.Connection], list[str]] = lambda _: [],
    ) -> bool:
        """Write the final state; False when another runner has the job. `name_files` is called in its transaction, and
        returns the replaced content."""
        database = self._control.database
        with database.transaction() as connection:
            current = LEASES.find(connection, LEASES.of(row))
            if current is None:
                return False
            now = database.now(connection)
            if current.cancel_requested:
                state, changes = JobState.JOB_STATE_CANCELLED, changes | {"error": CANCELLED_STATUS}
            replaced = name_files(connection)
            is_written = write(connection, current, now, state, changes | {"endTime": timestamp(now)})
            assert is_written, "the row is locked"
        for content in replaced:
            self._control.buckets.collect(content)
        logger.info("batch prediction ended", extra={"job": row.id, "state": str(state)})
        return True


def _begun(row: AnyRow, now: float) -> dict[str, Any]:
    """The columns of a job that is claimed."""
    state = row.state if row.state == JobState.JOB_STATE_CANCELLING else str(JobState.JOB_STATE_RUNNING)
    resource = {"startTime": timestamp(now)} | orjson.loads(row.resource) | {"state": state}
    resource["updateTime"] = timestamp(now)
    return {"state": state, "resource": orjson.dumps(resource).decode()}


def _next_rows(rows: Iterator[bytes | None]) -> list[bytes | None]:
    return list(islice(rows, AT_ONCE))


def _count(rows: Iterable[object]) -> int:
    return sum(1 for _ in rows)


def _bounded_lines(file: BinaryIO) -> Iterator[bytes | None]:
    """Lines that are not blank; None for one of more than `MOST_ROW_BYTES`."""
    while line := file.readline(MOST_ROW_BYTES + 1):
        if len(line) > MOST_ROW_BYTES and not line.endswith(b"\n"):
            while (rest := file.readline(MOST_ROW_BYTES)) and not rest.endswith(b"\n"):
                pass
            yield None
        elif line.strip():
            yield line


def _count_whole_lines(path: Path) -> int:
    """The number of complete lines, including those of an earlier attempt; an incomplete last one is removed."""
    if not path.exists():
        return 0
    count = whole = 0
    with path.open("r+b") as file:
        for line in file:
            if line.endswith(b"\n"):
                count, whole = count + 1, whole + len(line)
        file.truncate(whole)
    return count
