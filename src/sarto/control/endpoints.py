"""Endpoints: one for each published checkpoint, made by `publishing`. Get, list, undeploy, delete."""

from __future__ import annotations

from typing import Any

import orjson
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from sarto.control import filters, iam, operations, paging
from sarto.control.auth import Principal
from sarto.control.context import AnyRow, Control
from sarto.control.resolution import check_found
from sarto.errors import FailedPrecondition, NotFound
from sarto.names import LocationName, ResourceName
from sarto.storage.tables import endpoint


def get(control: Control, principal: Principal, name: ResourceName) -> dict[str, Any]:
    """Raises NotFound, naming the region that has it."""
    project = iam.require(control.database, principal, "aiplatform.endpoints.get", name.project, name.on).number
    with control.database.reading() as connection:
        return _read(_find(connection, project, name))


def list_(
    control: Control,
    principal: Principal,
    parent: LocationName,
    page_size: int = 0,
    page_token: str = "",
    filter: str = "",
) -> tuple[list[dict[str, Any]], str]:
    """Newest first, and the token of the next page."""
    project = iam.require(control.database, principal, "aiplatform.endpoints.list", parent.project).number
    scope, tree = ("endpoints", project, parent.location, filter), filters.parse(filter)
    query = sa.select(endpoint).where(endpoint.c.project == project).order_by(endpoint.c.id.desc())
    if parent.location != "-":
        query = query.where(endpoint.c.location == parent.location)

    def after(key: str, limit: int) -> list[tuple[str, dict[str, Any]]]:
        with control.database.reading() as connection:
            rows = connection.execute((query.where(endpoint.c.id < key) if key else query).limit(limit)).all()
        return [(row.id, _read(row)) for row in rows]

    return paging.page(after, lambda found: filters.meets(tree, found, "endpoint"), page_size, page_token, *scope)


def undeploy(control: Control, principal: Principal, name: ResourceName, deployed_model_id: str) -> dict[str, Any]:
    """Take the checkpoint off its endpoint, which then answers nothing. Gives a done operation."""
    project = iam.require(control.database, principal, "aiplatform.endpoints.undeploy", name.project, name.on).number
    with control.database.transaction() as connection:
        row = _find(connection, project, name)
        if deployed_model_id != row.id or not row.checkpoint_id:
            raise NotFound(f'Endpoint {name} has no deployed model "{deployed_model_id}".')
        connection.execute(_is(endpoint.update(), row).values(checkpoint_id=""))
        return operations.done(
            connection,
            LocationName(project, row.location),
            f"endpoints/{row.id}",
            "UndeployModelOperationMetadata",
            {"@type": f"{operations.METADATA}UndeployModelResponse"},
            control.database.now(connection),
        )


def delete(control: Control, principal: Principal, name: ResourceName) -> dict[str, Any]:
    """Remove an endpoint that nothing is deployed on. Gives a done operation. Raises FailedPrecondition."""
    project = iam.require(control.database, principal, "aiplatform.endpoints.delete", name.project, name.on).number
    with control.database.transaction() as connection:
        row = _find(connection, project, name)
        if row.checkpoint_id:
            raise FailedPrecondition(
                f"Endpoint {name} has a deployed model; undeploy deployedModelId {row.id} first, or delete the model."
            )
        connection.execute(endpoint.delete().where(endpoint.c.project == project, endpoint.c.id == row.id))
        now = control.database.now(connection)
        return operations.deleted(connection, LocationName(project, row.location), f"endpoints/{row.id}", now)


def _find(connection: Connection, project: str, name: ResourceName) -> AnyRow:
    query = sa.select(endpoint).where(endpoint.c.project == project, endpoint.c.id == name.id)
    row = connection.execute(query).first()
    check_found(row, name, "Endpoint")
    assert row is not None
    return row


def _is(statement: sa.Update, row: AnyRow) -> sa.Update:
    return statement.where(endpoint.c.project == row.project, endpoint.c.id == row.id)


def _read(row: AnyRow) -> dict[str, Any]:
    """As it goes over the wire; while its job still runs, the deployed model has no name yet."""
    resource: dict[str, Any] = orjson.loads(row.resource)
    if not row.checkpoint_id:
        return resource
    deployed = {
        "id": row.id,
        "displayName": resource.get("displayName", ""),
        "checkpointId": row.checkpoint_id,
        "createTime": resource["createTime"],
    }
    if row.model:
        deployed["model"] = str(ResourceName(row.project, row.location, "models", row.model))
        deployed["modelVersionId"] = str(row.version)
    return {**resource, "deployedModels": [deployed], "trafficSplit": {row.id: 100}}
