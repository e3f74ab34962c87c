"""Endpoints: one for each published checkpoint, and those that users create and deploy to.

An endpoint serves one checkpoint of one tuned model, or none. Traffic split is not supported.
"""

from __future__ import annotations

from typing import Any

import orjson
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from sarto.control import operations
from sarto.control.access import authorization
from sarto.control.access.principal import Principal
from sarto.control.aip import filters, labels, pages
from sarto.control.aip.labels import NAME_CHARACTERS
from sarto.control.aip.times import timestamp
from sarto.control.context import AnyRow, Control
from sarto.control.models.resolution import check_found, find_version
from sarto.errors import FailedPrecondition, InvalidArgument, NotFound
from sarto.names import LocationName, ResourceName, new_id
from sarto.schema.models import Endpoint
from sarto.storage.database.database import report
from sarto.storage.database.tables import checkpoint, endpoint

WORDS = ("display_name", "description", "labels")
"""Fields of an endpoint that a user may change."""


def get(control: Control, principal: Principal, name: ResourceName) -> dict[str, Any]:
    """The endpoint. Raises NotFound with its region."""
    project = authorization.require(
        control.database, principal, "aiplatform.endpoints.get", name.project, name.on
    ).number
    with control.database.reading() as connection:
        return _read(_find(connection, project, name))


def list_endpoints(
    control: Control,
    principal: Principal,
    parent: LocationName,
    page_size: int = 0,
    page_token: str = "",
    filter: str = "",
) -> tuple[list[dict[str, Any]], str]:
    """Endpoints, newest first, and the token of the next page."""
    project = authorization.require(control.database, principal, "aiplatform.endpoints.list", parent.project).number
    page = pages.requested(page_size, page_token, "endpoints", project, parent.location, filter)
    tree = filters.parse(filter)
    query = sa.select(endpoint).where(pages.within(endpoint, project, parent.location)).order_by(endpoint.c.id.desc())

    def after(key: str, limit: int) -> list[tuple[str, dict[str, Any]]]:
        with control.database.reading() as connection:
            rows = connection.execute((query.where(endpoint.c.id < key) if key else query).limit(limit)).all()
        return [(row.id, _read(row)) for row in rows]

    return pages.filtered(after, lambda resource: filters.meets(tree, resource, "endpoint"), page)


def create(control: Control, principal: Principal, parent: LocationName, requested: Endpoint) -> dict[str, Any]:
    """Create an endpoint without a deployed model. Returns a finished operation. Raises InvalidArgument."""
    project = authorization.require(control.database, principal, "aiplatform.endpoints.create", parent.project).number
    _check_words(requested, Endpoint())
    name = ResourceName(project, parent.location, "endpoints", new_id())
    with control.database.transaction() as connection:
        now = control.database.now(connection)
        words = requested.model_copy(update={"name": str(name)}).model_dump(include={"name", *WORDS})
        resource = Endpoint(**words).to_json() | {"createTime": timestamp(now), "updateTime": timestamp(now)}
        connection.execute(
            endpoint.insert().values(
                project=project, id=name.id, location=name.location, job="", model="", version=0, checkpoint_id="",
                resource=orjson.dumps(resource).decode(), create_time=now,
            )
        )  # fmt: skip
        report(connection, "aiplatform.endpoints.create", project, str(name))
        about, response = LocationName(project, name.location), {"@type": f"{operations.METADATA}Endpoint", **resource}
        operation = "CreateEndpointOperationMetadata"
        return operations.done(connection, about, f"endpoints/{name.id}", operation, response, now)


def update(
    control: Control, principal: Principal, name: ResourceName, requested: Endpoint, mask: frozenset[str] = frozenset()
) -> dict[str, Any]:
    """Change the fields in `mask`, without one those that are given; `*` means all. Raises InvalidArgument."""
    project = authorization.require(
        control.database, principal, "aiplatform.endpoints.update", name.project, name.on
    ).number
    fields = frozenset(WORDS) if mask == {"*"} else mask or requested.model_fields_set & frozenset(WORDS)
    if unknown := fields - frozenset(WORDS):
        raise InvalidArgument.field("update_mask", f"{', '.join(sorted(unknown))} cannot be changed.")
    if not fields:
        raise InvalidArgument.field("endpoint", f"Nothing to change; give one of {', '.join(WORDS)}.")
    with control.database.transaction() as connection:
        row = _find(connection, project, name)
        stored = Endpoint.read(orjson.loads(row.resource))
        _check_words(requested, stored)
        changed = stored.model_copy(update={field: getattr(requested, field) for field in fields}).to_json()
        changed["updateTime"] = timestamp(control.database.now(connection))
        connection.execute(_is(endpoint.update(), row).values(resource=orjson.dumps(changed).decode()))
        return _read(_find(connection, project, name))


def deploy(
    control: Control, principal: Principal, name: ResourceName, source: ResourceName, checkpoint_id: str = ""
) -> dict[str, Any]:
    """Deploy a tuned model on an empty endpoint, at a checkpoint or its default one. Returns a finished operation.
    Raises NotFound, FailedPrecondition."""
    project = authorization.require(
        control.database, principal, "aiplatform.endpoints.deploy", name.project, name.on
    ).number
    if (
        authorization.require(control.database, principal, "aiplatform.models.get", source.project, source.on).number
        != project
    ):
        raise InvalidArgument.field("deployed_model.model", "A model is deployed in its own project only.")
    with control.database.transaction() as connection:
        row, version = _find(connection, project, name), find_version(connection, project, source)
        if row.location != source.location:
            raise FailedPrecondition(
                f"{source} and {name} are in different regions; deploy the model on an endpoint in its own region."
            )
        if row.checkpoint_id:
            raise FailedPrecondition(
                f"Endpoint {name} has a deployed model; undeploy deployedModelId {row.id} first, or create another."
            )
        chosen = checkpoint_id or version.default_checkpoint
        known = (checkpoint.c.project == project) & (checkpoint.c.job == version.job)
        if (
            connection.execute(sa.select(checkpoint.c.job).where(known, checkpoint.c.checkpoint_id == chosen)).first()
            is None
        ):
            raise NotFound(f'{source} has no checkpoint "{chosen}".')
        values = {"job": version.job, "model": version.model, "version": version.version, "checkpoint_id": chosen}
        connection.execute(_is(endpoint.update(), row).values(values))
        (deployed,) = _read(_find(connection, project, name))["deployedModels"]
        return operations.done(
            connection,
            LocationName(project, row.location),
            f"endpoints/{row.id}",
            "DeployModelOperationMetadata",
            {"@type": f"{operations.METADATA}DeployModelResponse", "deployedModel": deployed},
            control.database.now(connection),
        )


def undeploy(control: Control, principal: Principal, name: ResourceName, deployed_model_id: str) -> dict[str, Any]:
    """Remove the checkpoint from its endpoint, which then serves nothing. Returns a finished operation."""
    project = authorization.require(
        control.database, principal, "aiplatform.endpoints.undeploy", name.project, name.on
    ).number
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
    """Remove an endpoint without a deployed model. Returns a finished operation. Raises FailedPrecondition."""
    project = authorization.require(
        control.database, principal, "aiplatform.endpoints.delete", name.project, name.on
    ).number
    with control.database.transaction() as connection:
        row = _find(connection, project, name)
        if row.checkpoint_id:
            raise FailedPrecondition(
                f"Endpoint {name} has a deployed model; undeploy deployedModelId {row.id} first, or delete the model."
            )
        connection.execute(endpoint.delete().where(endpoint.c.project == project, endpoint.c.id == row.id))
        now = control.database.now(connection)
        return operations.deleted(connection, LocationName(project, row.location), f"endpoints/{row.id}", now)


def _check_words(requested: Endpoint, before: Endpoint) -> None:
    labels.check_change(requested.labels, before.labels, "endpoint.labels")
    if len(requested.display_name) > NAME_CHARACTERS:
        raise InvalidArgument.field("endpoint.display_name", f"At most {NAME_CHARACTERS} characters are allowed.")


def _find(connection: Connection, project: str, name: ResourceName) -> AnyRow:
    query = sa.select(endpoint).where(endpoint.c.project == project, endpoint.c.id == name.id)
    row = connection.execute(query).first()
    check_found(row, name, "Endpoint")
    assert row is not None
    return row


def _is(statement: sa.Update, row: AnyRow) -> sa.Update:
    return statement.where(endpoint.c.project == row.project, endpoint.c.id == row.id)


def _read(row: AnyRow) -> dict[str, Any]:
    """The endpoint in the API's form; while its job still runs, the deployed model has no name yet."""
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
