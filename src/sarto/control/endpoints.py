"""Endpoints: one for each published checkpoint, made by `publishing`, and those that users make and deploy on.

An endpoint holds one checkpoint of one tuned model, or none; sharing traffic between several is not built.
"""

from __future__ import annotations

from typing import Any

import orjson
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from sarto.control import filters, iam, labels, operations, paging
from sarto.control.auth import Principal
from sarto.control.context import AnyRow, Control
from sarto.control.events import timestamp
from sarto.control.resolution import check_found, find_version
from sarto.control.validation import NAME_CHARACTERS
from sarto.errors import FailedPrecondition, InvalidArgument, NotFound
from sarto.names import LocationName, ResourceName, new_id
from sarto.schema.models import Endpoint
from sarto.storage.tables import checkpoint, endpoint

WORDS = ("display_name", "description", "labels")
"""What a user may write on an endpoint."""


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


def create(control: Control, principal: Principal, parent: LocationName, given: Endpoint) -> dict[str, Any]:
    """An endpoint that nothing is deployed on yet. Gives a done operation. Raises InvalidArgument."""
    project = iam.require(control.database, principal, "aiplatform.endpoints.create", parent.project).number
    _check_words(given, Endpoint())
    name = ResourceName(project, parent.location, "endpoints", new_id())
    with control.database.transaction() as connection:
        now = control.database.now(connection)
        words = given.model_copy(update={"name": str(name)}).model_dump(include={"name", *WORDS})
        resource = Endpoint(**words).to_json() | {"createTime": timestamp(now), "updateTime": timestamp(now)}
        connection.execute(
            endpoint.insert().values(
                project=project, id=name.id, location=name.location, job="", model="", version=0, checkpoint_id="",
                resource=orjson.dumps(resource).decode(), create_time=now,
            )
        )  # fmt: skip
        about, made = LocationName(project, name.location), {"@type": f"{operations.METADATA}Endpoint", **resource}
        operation = "CreateEndpointOperationMetadata"
        return operations.done(connection, about, f"endpoints/{name.id}", operation, made, now)


def update(
    control: Control, principal: Principal, name: ResourceName, given: Endpoint, mask: frozenset[str] = frozenset()
) -> dict[str, Any]:
    """Change the words that `mask` names, without one those that are given; `*` is all. Raises InvalidArgument."""
    project = iam.require(control.database, principal, "aiplatform.endpoints.update", name.project, name.on).number
    fields = frozenset(WORDS) if mask == {"*"} else mask or given.model_fields_set & frozenset(WORDS)
    if unknown := fields - frozenset(WORDS):
        raise InvalidArgument.field("update_mask", f"{', '.join(sorted(unknown))} cannot be changed.")
    if not fields:
        raise InvalidArgument.field("endpoint", f"Nothing to change; give one of {', '.join(WORDS)}.")
    with control.database.transaction() as connection:
        row = _find(connection, project, name)
        kept = Endpoint.read(orjson.loads(row.resource))
        _check_words(given, kept)
        changed = kept.model_copy(update={field: getattr(given, field) for field in fields}).to_json()
        changed["updateTime"] = timestamp(control.database.now(connection))
        connection.execute(_is(endpoint.update(), row).values(resource=orjson.dumps(changed).decode()))
        return _read(_find(connection, project, name))


def deploy(
    control: Control, principal: Principal, name: ResourceName, source: ResourceName, checkpoint_id: str = ""
) -> dict[str, Any]:
    """Have an empty endpoint answer as a tuned model, at a checkpoint or its default one. Gives a done operation.
    Raises NotFound, FailedPrecondition."""
    project = iam.require(control.database, principal, "aiplatform.endpoints.deploy", name.project, name.on).number
    if iam.require(control.database, principal, "aiplatform.models.get", source.project, source.on).number != project:
        raise InvalidArgument.field("deployed_model.model", "A model is deployed in its own project only.")
    with control.database.transaction() as connection:
        row, version = _find(connection, project, name), find_version(connection, project, source)
        if row.location != source.location:
            raise FailedPrecondition(f"{source} and {name} lie in different regions; deploy it on one in its own.")
        if row.checkpoint_id:
            raise FailedPrecondition(
                f"Endpoint {name} has a deployed model; undeploy deployedModelId {row.id} first, or make another."
            )
        wanted = checkpoint_id or version.default_checkpoint
        known = (checkpoint.c.project == project) & (checkpoint.c.job == version.job)
        if (
            connection.execute(sa.select(checkpoint.c.job).where(known, checkpoint.c.checkpoint_id == wanted)).first()
            is None
        ):
            raise NotFound(f'{source} has no checkpoint "{wanted}".')
        values = {"job": version.job, "model": version.model, "version": version.version, "checkpoint_id": wanted}
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


def _check_words(given: Endpoint, before: Endpoint) -> None:
    labels.check_change(given.labels, before.labels, "endpoint.labels")
    if len(given.display_name) > NAME_CHARACTERS:
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
