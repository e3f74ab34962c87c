"""Operations: what a method that may take long answers with. Most are done when they are answered; an export and
an evaluation go on.

A name may stand under the resource it was about, as clients poll it; the id alone says which operation is meant.
"""

from __future__ import annotations

import time
from typing import Any

import orjson
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from sarto.control import events, iam, paging
from sarto.control.auth import Principal
from sarto.control.context import AnyRow, Control
from sarto.errors import InvalidArgument, NotFound
from sarto.names import LocationName, check_id, new_id, parse_location
from sarto.storage.tables import dataset_evaluation, model_export, operation

EMPTY = "type.googleapis.com/google.protobuf.Empty"
METADATA = "type.googleapis.com/google.cloud.aiplatform.v1."
CANCELLED_STATUS = {"code": 1, "message": "The operation was cancelled."}
LOOK_SECONDS = 0.1
MOST_WAIT_SECONDS = 300.0


class Ended(Exception):
    """The operation was cancelled, or is another's work now."""


def done(
    connection: Connection, about: LocationName, parent: str, metadata: str, response: dict[str, Any], now: float
) -> dict[str, Any]:
    """Record a finished operation under `parent` (such as `models/7`, or empty); gives its JSON."""
    return _insert(connection, about, parent, metadata, {}, {"done": True, "response": response}, now)


def begin(
    connection: Connection, about: LocationName, parent: str, metadata: str, facts: dict[str, Any], now: float
) -> dict[str, Any]:
    """Record an operation that somebody will `finish`; `facts` stand in its metadata."""
    return _insert(connection, about, parent, metadata, facts, {"done": False}, now)


def enqueue(connection: Connection, table: sa.Table, made: dict[str, Any], run: dict[str, Any], now: float) -> None:
    """Have the work of an operation that was begun done by an `OperationRunner` of that table."""
    parts = made["name"].split("/")
    connection.execute(
        table.insert().values(
            project=parts[1],
            operation=parts[-1],
            run=orjson.dumps(run).decode(),
            lease_owner=None,
            lease_epoch=0,
            lease_until=None,
            create_time=now,
        )
    )


def amend(connection: Connection, project: str, identifier: str, facts: dict[str, Any], now: float) -> None:
    """Change an unfinished operation's metadata."""
    row = connection.execute(sa.select(operation).where(_is(project, identifier))).first()
    if row is None or row.done:
        return
    resource = orjson.loads(row.resource)
    resource["metadata"] |= {key: value for key, value in facts.items() if value is not None}
    resource["metadata"]["genericMetadata"]["updateTime"] = events.timestamp(now)
    connection.execute(
        operation.update().where(_is(project, identifier)).values(resource=orjson.dumps(resource).decode())
    )


def finish(connection: Connection, project: str, identifier: str, outcome: dict[str, Any]) -> None:
    """`outcome` is {"response": …} or {"error": google.rpc.Status}. One that is forgotten or finished stays so."""
    row = connection.execute(sa.select(operation).where(_is(project, identifier))).first()
    if row is None or row.done:
        return
    resource = orjson.loads(row.resource) | {"done": True} | outcome
    connection.execute(
        operation.update().where(_is(project, identifier)).values(done=True, resource=orjson.dumps(resource).decode())
    )


def _is(project: str, identifier: str) -> sa.ColumnElement[bool]:
    return sa.and_(operation.c.project == project, operation.c.id == identifier)


def _insert(
    connection: Connection,
    about: LocationName,
    parent: str,
    metadata: str,
    facts: dict[str, Any],
    outcome: dict[str, Any],
    now: float,
) -> dict[str, Any]:
    identifier = new_id()
    prefix = f"{about}/{parent}" if parent else str(about)
    moment = events.timestamp(now)
    resource = {
        "name": f"{prefix}/operations/{identifier}",
        "metadata": {
            "@type": f"{METADATA}{metadata}",
            "genericMetadata": {"createTime": moment, "updateTime": moment},
            **facts,
        },
        **outcome,
    }
    connection.execute(
        operation.insert().values(
            project=about.project,
            id=identifier,
            location=about.location,
            parent=parent,
            done=outcome["done"],
            resource=orjson.dumps(resource).decode(),
            create_time=now,
        )
    )
    return resource


def deleted(connection: Connection, about: LocationName, parent: str, now: float) -> dict[str, Any]:
    """Record that `parent` was deleted; gives the JSON of the finished operation."""
    return done(connection, about, parent, "DeleteOperationMetadata", {"@type": EMPTY}, now)


def get(control: Control, principal: Principal, name: str) -> dict[str, Any]:
    """By `projects/P/locations/L/[…/]operations/ID`. Raises NotFound."""
    project, identifier = _parse(control, principal, name, "aiplatform.operations.get")
    with control.database.reading() as connection:
        return _read(_find(connection, project, identifier, name))


def list_(
    control: Control, principal: Principal, parent: str, page_size: int = 0, page_token: str = ""
) -> tuple[list[dict[str, Any]], str]:
    """Newest first, of a location (`-`: of all) or of one resource in it."""
    head, _, rest = _split(parent, wildcard=True)
    project = iam.require(control.database, principal, "aiplatform.operations.list", head.project).number
    size, scope = paging.page_size(page_size), ("operations", project, head.location, rest)
    query = sa.select(operation).where(operation.c.project == project)
    if head.location != "-":
        query = query.where(operation.c.location == head.location)
    if rest:
        query = query.where(operation.c.parent == rest)
    if before := paging.start(page_token, *scope):
        query = query.where(operation.c.id < before)
    with control.database.reading() as connection:
        rows = connection.execute(query.order_by(operation.c.id.desc()).limit(size + 1)).all()
    more = paging.token(rows[size - 1].id, *scope) if len(rows) > size else ""
    return [_read(row) for row in rows[:size]], more


def wait(control: Control, principal: Principal, name: str, timeout_seconds: float = 0.0) -> dict[str, Any]:
    """The operation when it is done, or as it is after the timeout (0: the longest we wait)."""
    until = time.monotonic() + min(timeout_seconds or MOST_WAIT_SECONDS, MOST_WAIT_SECONDS)
    while True:
        found = get(control, principal, name)
        if found.get("done") or time.monotonic() >= until:
            return found
        time.sleep(LOOK_SECONDS)


def cancel(control: Control, principal: Principal, name: str) -> None:
    """End one that goes on; a finished operation stays as it is. Raises NotFound."""
    project, identifier = _parse(control, principal, name, "aiplatform.operations.cancel")
    with control.database.transaction() as connection:
        _find(connection, project, identifier, name)
        _stop(connection, project, identifier)


def delete(control: Control, principal: Principal, name: str) -> None:
    """Forget an operation; what it did stays done, what it still does ends. Raises NotFound."""
    project, identifier = _parse(control, principal, name, "aiplatform.operations.delete")
    with control.database.transaction() as connection:
        _find(connection, project, identifier, name)
        _stop(connection, project, identifier)
        connection.execute(operation.delete().where(_is(project, identifier)))


def _stop(connection: Connection, project: str, identifier: str) -> None:
    """Take the work of an unfinished operation away from whoever does it."""
    for table in (model_export, dataset_evaluation):
        connection.execute(table.delete().where(table.c.project == project, table.c.operation == identifier))
    finish(connection, project, identifier, {"error": CANCELLED_STATUS})


def _split(name: str, *, wildcard: bool = False) -> tuple[LocationName, str, str]:
    """The location, the last part, and what lies between them."""
    parts = name.split("/")
    return parse_location("/".join(parts[:4]), wildcard=wildcard), parts[-1], "/".join(parts[4:])


def _parse(control: Control, principal: Principal, name: str, permission: str) -> tuple[str, str]:
    location, identifier, rest = _split(name)
    if rest.split("/")[-2:-1] != ["operations"]:
        raise InvalidArgument(f'"{name}" is not of the form projects/PROJECT/locations/LOCATION/operations/ID')
    return iam.require(control.database, principal, permission, location.project).number, check_id(identifier)


def _find(connection: Connection, project: str, identifier: str, name: str) -> AnyRow:
    row = connection.execute(
        sa.select(operation).where(operation.c.project == project, operation.c.id == identifier)
    ).first()
    if row is None or f"/locations/{row.location}/" not in name:
        raise NotFound(f"Operation {name} is not found.")
    return row


def _read(row: AnyRow) -> dict[str, Any]:
    resource: dict[str, Any] = orjson.loads(row.resource)
    return resource
