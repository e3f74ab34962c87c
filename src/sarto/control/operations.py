"""Long-running operations. Most are done when they are returned; exports and evaluations of datasets continue.

Clients poll a name under the operation's resource. Only the id identifies the operation.
"""

from __future__ import annotations

from typing import Any

import orjson
import sqlalchemy as sa
from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_camel
from sqlalchemy.engine import Connection

from sarto.control.access import authorization, quoting
from sarto.control.access.principal import Principal
from sarto.control.aip import pages, times
from sarto.control.context import AnyRow, Control
from sarto.errors import InvalidArgument, NotFound
from sarto.names import LocationName, check_id, new_id, parse_location
from sarto.storage.database.tables import dataset_evaluation, model_export, operation

EMPTY = "type.googleapis.com/google.protobuf.Empty"
METADATA = "type.googleapis.com/google.cloud.aiplatform.v1."
CANCELLED_STATUS = {"code": 1, "message": "The operation was cancelled."}


class OperationRun(BaseModel):
    """Decisions of the call that started an operation, for its program; stored, never shown. Each kind of operation has
    its own fields."""

    model_config = ConfigDict(frozen=True, alias_generator=to_camel, populate_by_name=True)

    kms_key: str = ""
    """The key of the operation's input and output."""
    may_replace: bool = True
    """Whether the caller may replace objects in the output folder."""


def done(
    connection: Connection, about: LocationName, parent: str, metadata: str, response: dict[str, Any], now: float
) -> dict[str, Any]:
    """Record a finished operation under `parent` (such as `models/7`, or empty); returns its JSON."""
    return _insert(connection, about, parent, metadata, {}, {"done": True, "response": response}, now)


def begin(
    connection: Connection, about: LocationName, parent: str, metadata: str, facts: dict[str, Any], now: float
) -> dict[str, Any]:
    """Record an operation that will be finished by `finish`; `facts` are in its metadata."""
    return _insert(connection, about, parent, metadata, facts, {"done": False}, now)


def enqueue(
    connection: Connection,
    table: sa.Table,
    resource: dict[str, Any],
    run: OperationRun,
    asked_by: Principal,
    now: float,
) -> None:
    """Queue the work of an operation for the `OperationRunner` of that table."""
    parts = resource["name"].split("/")
    connection.execute(
        table.insert().values(
            project=parts[1],
            operation=parts[-1],
            run=run.model_dump_json(by_alias=True),
            asked_by=asked_by.member,
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
    resource["metadata"]["genericMetadata"]["updateTime"] = times.timestamp(now)
    connection.execute(
        operation.update().where(_is(project, identifier)).values(resource=orjson.dumps(resource).decode())
    )


def finish(connection: Connection, project: str, identifier: str, outcome: dict[str, Any]) -> None:
    """`outcome` is {"response": …} or {"error": google.rpc.Status}. A deleted or finished operation is unchanged."""
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
    moment = times.timestamp(now)
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
    """Record that `parent` was deleted; returns the JSON of the finished operation."""
    return done(connection, about, parent, "DeleteOperationMetadata", {"@type": EMPTY}, now)


def get(control: Control, principal: Principal, name: str) -> dict[str, Any]:
    """The operation with the name `projects/P/locations/L/[…/]operations/ID`. Raises NotFound."""
    project, identifier = _parse(control, principal, name, "aiplatform.operations.get")
    with control.database.reading() as connection:
        row = _find(connection, project, identifier, name)
    return quoting.operation(control, principal, project, _read(row))


def list_operations(
    control: Control, principal: Principal, parent: str, page_size: int = 0, page_token: str = ""
) -> tuple[list[dict[str, Any]], str]:
    """Operations, newest first, of a location (`-`: of all) or of one resource in it."""
    head, _, rest = _split(parent, wildcard=True)
    project = authorization.require(control.database, principal, "aiplatform.operations.list", head.project).number
    page = pages.requested(page_size, page_token, "operations", project, head.location, rest)
    query = sa.select(operation).where(pages.within(operation, project, head.location))
    if rest:
        query = query.where(operation.c.parent == rest)
    with control.database.reading() as connection:
        rows, more = page.read(connection, query, operation.c.id)
    return [quoting.operation(control, principal, project, _read(row)) for row in rows], more


def cancel(control: Control, principal: Principal, name: str) -> None:
    """Cancel an unfinished operation; a finished one is unchanged. Raises NotFound."""
    project, identifier = _parse(control, principal, name, "aiplatform.operations.cancel")
    with control.database.transaction() as connection:
        _find(connection, project, identifier, name)
        _stop(connection, project, identifier)


def delete(control: Control, principal: Principal, name: str) -> None:
    """Delete an operation; finished work stays, running work ends. Raises NotFound."""
    project, identifier = _parse(control, principal, name, "aiplatform.operations.delete")
    with control.database.transaction() as connection:
        _find(connection, project, identifier, name)
        _stop(connection, project, identifier)
        connection.execute(operation.delete().where(_is(project, identifier)))


def _stop(connection: Connection, project: str, identifier: str) -> None:
    """Remove the work of an unfinished operation from the queue, which ends it."""
    for table in (model_export, dataset_evaluation):
        connection.execute(table.delete().where(table.c.project == project, table.c.operation == identifier))
    finish(connection, project, identifier, {"error": CANCELLED_STATUS})


def _split(name: str, *, wildcard: bool = False) -> tuple[LocationName, str, str]:
    """The location, the last part, and the parts between them."""
    parts = name.split("/")
    return parse_location("/".join(parts[:4]), wildcard=wildcard), parts[-1], "/".join(parts[4:])


def _parse(control: Control, principal: Principal, name: str, permission: str) -> tuple[str, str]:
    location, identifier, rest = _split(name)
    if rest.split("/")[-2:-1] != ["operations"]:
        raise InvalidArgument(f'"{name}" is not of the form projects/PROJECT/locations/LOCATION/operations/ID.')
    return authorization.require(control.database, principal, permission, location.project).number, check_id(identifier)


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
