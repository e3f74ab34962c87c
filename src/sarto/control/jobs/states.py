"""The states of a tuning job, the transitions between them, and `advance`, the only writer of a state."""

from __future__ import annotations

from typing import Any

import orjson
from sqlalchemy.engine import Connection

from sarto.control.aip.times import timestamp
from sarto.control.context import AnyRow
from sarto.control.webhooks import subscriptions
from sarto.schema.tuning_jobs import FINAL_STATES, JobState
from sarto.storage.database.tables import tuning_job

PENDING = JobState.JOB_STATE_PENDING


RUNNING = JobState.JOB_STATE_RUNNING


PAUSED = JobState.JOB_STATE_PAUSED


CANCELLING = JobState.JOB_STATE_CANCELLING


CANCELLED = JobState.JOB_STATE_CANCELLED


SUCCEEDED = JobState.JOB_STATE_SUCCEEDED


FAILED = JobState.JOB_STATE_FAILED


MOVES: dict[JobState, frozenset[JobState]] = {
    PENDING: frozenset({RUNNING, CANCELLED, FAILED}),
    RUNNING: frozenset({PAUSED, CANCELLING, CANCELLED, SUCCEEDED, FAILED}),
    PAUSED: frozenset({RUNNING, CANCELLED, FAILED}),
    CANCELLING: frozenset({CANCELLED}),
    SUCCEEDED: frozenset(),
    FAILED: frozenset(),
    CANCELLED: frozenset(),
}
"""Every legal transition. A job that lost its run stays RUNNING until the next run takes over or attempts are used up.
One whose key is disabled is PAUSED until it is enabled."""


OPEN_STATES = frozenset(MOVES) - FINAL_STATES


CANCELLED_STATUS = {"code": 1, "message": "The job was cancelled by its user."}


class Fenced(Exception):
    """A write for a job without its lease, or a transition that is not in the table. It changes nothing."""


def advance(
    connection: Connection, row: AnyRow, to: JobState, now: float, changes: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Move a job from the state and epoch of `row` to `to` with `changes` of its resource; returns the resource.

    A compare-and-set: raises Fenced when the transition is not in MOVES, or the job has changed since `row` was
    read."""
    if to not in MOVES[JobState(row.state)]:
        raise Fenced(f"job {row.id}: no move from {row.state} to {to}")
    changes = {"state": str(to), **(changes or {})}
    values: dict[str, Any] = {"state": str(to)}
    if to is RUNNING and row.state == str(PENDING):
        changes["startTime"] = timestamp(now)
    if to in FINAL_STATES:
        changes["endTime"] = timestamp(now)
        changes["tuningJobState"] = None
        values |= {"lease_owner": None, "lease_until": None}
    if to in (CANCELLING, CANCELLED):
        values["cancel_requested"] = True
    resource = amend(connection, row, now, changes, values)
    subscriptions.enqueue(connection, row, now, resource)
    return resource


def amend(
    connection: Connection, row: AnyRow, now: float, changes: dict[str, Any], values: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Write `changes` (None removes a field) into the resource and `values` into columns; returns the resource.

    Raises Fenced when state or epoch differ from those of `row`."""
    resource: dict[str, Any] = orjson.loads(row.resource)
    resource.update(changes)
    resource["updateTime"] = timestamp(now)
    resource = {key: value for key, value in resource.items() if value is not None}
    written = connection.execute(
        tuning_job.update()
        .where(
            tuning_job.c.project == row.project,
            tuning_job.c.id == row.id,
            tuning_job.c.state == row.state,
            tuning_job.c.lease_epoch == row.lease_epoch,
        )
        .values(resource=orjson.dumps(resource).decode(), **(values or {}))
    )
    if written.rowcount != 1:
        raise Fenced(f"job {row.id}: state or lease changed meanwhile")
    return resource
