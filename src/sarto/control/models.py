"""The registry of tuned models: get, list, versions, update, delete. `resolve` says what answers a name.

A version's row holds what does not change; default alias, default checkpoint and endpoints are put in when it is read.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import orjson
import sqlalchemy as sa
from pydantic.alias_generators import to_camel
from sqlalchemy.engine import Connection

from sarto.control import events, filters, iam, labels, leftovers, operations, paging
from sarto.control.auth import Principal
from sarto.control.context import AnyRow, Control
from sarto.control.exports import FORMATS
from sarto.control.leftovers import Leftovers
from sarto.control.resolution import DEFAULT_ALIAS, Deployed, find_version, resolve
from sarto.control.validation import NAME_CHARACTERS
from sarto.errors import FailedPrecondition, InvalidArgument
from sarto.names import LocationName, ResourceName, check_id
from sarto.schema.models import Model
from sarto.storage.tables import checkpoint, endpoint, model, model_version

__all__ = [
    "Deployed", "delete", "delete_version", "get", "list_", "list_versions", "merge_version_aliases", "resolve",
    "update",
]  # fmt: skip

UPDATABLE = frozenset({"display_name", "description", "labels", "default_checkpoint_id", "version_description"})


def get(control: Control, principal: Principal, name: ResourceName) -> dict[str, Any]:
    """The default version, or the one after `@`. Raises NotFound."""
    project = iam.require(control.database, principal, "aiplatform.models.get", name.project, name.on).number
    with control.database.reading() as connection:
        return _read(connection, [find_version(connection, project, name)])[0]


def list_(
    control: Control,
    principal: Principal,
    parent: LocationName,
    page_size: int = 0,
    page_token: str = "",
    filter: str = "",
) -> tuple[list[dict[str, Any]], str]:
    """Default versions, newest model first, and the token of the next page."""
    project = iam.require(control.database, principal, "aiplatform.models.list", parent.project).number
    scope, tree = ("models", project, parent.location, filter), filters.parse(filter)
    query = (
        sa.select(model_version)
        .join(
            model,
            sa.and_(
                model.c.project == model_version.c.project,
                model.c.id == model_version.c.model,
                model.c.default_version == model_version.c.version,
            ),
        )
        .where(model.c.project == project)
        .order_by(model.c.id.desc())
    )
    if parent.location != "-":
        query = query.where(model.c.location == parent.location)

    def after(key: str, limit: int) -> list[tuple[str, dict[str, Any]]]:
        with control.database.reading() as connection:
            rows = connection.execute((query.where(model.c.id < key) if key else query).limit(limit)).all()
            return list(zip((row.model for row in rows), _read(connection, rows), strict=True))

    return paging.page(after, lambda found: filters.meets(tree, found, "model"), page_size, page_token, *scope)


def list_versions(
    control: Control, principal: Principal, name: ResourceName, page_size: int = 0, page_token: str = ""
) -> tuple[list[dict[str, Any]], str]:
    """All versions of a model, newest first. Raises NotFound."""
    project = iam.require(control.database, principal, "aiplatform.models.get", name.project, name.on).number
    size, scope = paging.page_size(page_size), ("versions", project, name.id)
    before = paging.start(page_token, *scope)
    query = sa.select(model_version).where(model_version.c.project == project, model_version.c.model == name.id)
    if before:
        query = query.where(model_version.c.version < int(before))
    with control.database.reading() as connection:
        find_version(connection, project, name)
        rows = connection.execute(query.order_by(model_version.c.version.desc()).limit(size + 1)).all()
        found = _read(connection, rows[:size])
    return found, paging.token(str(rows[size - 1].version), *scope) if len(rows) > size else ""


def update(
    control: Control, principal: Principal, name: ResourceName, given: Model, mask: Iterable[str] = ()
) -> dict[str, Any]:
    """Change the fields of `mask` (snake_case), without one those that are given; `*` replaces all, the default
    checkpoint if one is given. Raises InvalidArgument, NotFound."""
    project = iam.require(control.database, principal, "aiplatform.models.update", name.project, name.on).number
    fields: frozenset[str] | set[str] = set(mask) or (given.model_fields_set & UPDATABLE)
    if fields == {"*"}:
        fields = UPDATABLE - ({"default_checkpoint_id"} - given.model_fields_set)
    if unknown := fields - UPDATABLE:
        raise InvalidArgument.field("update_mask", f"{', '.join(sorted(unknown))} cannot be changed.")
    if not fields:
        raise InvalidArgument.field("model", f"Nothing to change; give one of {', '.join(sorted(UPDATABLE))}.")
    if len(given.display_name) > NAME_CHARACTERS:
        raise InvalidArgument.field("model.display_name", f"At most {NAME_CHARACTERS} characters are allowed.")
    with control.database.transaction() as connection:
        row = find_version(connection, project, name)
        resource = orjson.loads(row.resource)
        if "labels" in fields:
            labels.check_change(given.labels, resource.get("labels", {}), "model.labels")
        wire = given.to_json()
        for field in fields - {"default_checkpoint_id"}:
            key = {"display_name": "displayName", "version_description": "versionDescription"}.get(field, field)
            resource[key] = wire.get(key, {} if field == "labels" else "")
        default = row.default_checkpoint
        if "default_checkpoint_id" in fields:
            default = _known_checkpoint(resource, given.default_checkpoint_id)
        now = control.database.now(connection)
        resource["updateTime"] = resource["versionUpdateTime"] = events.timestamp(now)
        connection.execute(
            _one(model_version.update(), row).values(
                resource=orjson.dumps(resource).decode(), default_checkpoint=default
            )
        )
        return _read(connection, [find_version(connection, project, name)])[0]


def merge_version_aliases(
    control: Control, principal: Principal, name: ResourceName, aliases: list[str]
) -> dict[str, Any]:
    """Give a version aliases, taking them from other versions; `-alias` removes one; `default` moves, never goes."""
    project = iam.require(control.database, principal, "aiplatform.models.update", name.project, name.on).number
    added = {check_id(alias, "alias") for alias in aliases if not alias.startswith("-")}
    removed = {alias[1:] for alias in aliases if alias.startswith("-")}
    if DEFAULT_ALIAS in removed:
        raise InvalidArgument.field("version_aliases", 'Give "default" to another version instead of removing it.')
    if wrong := [alias for alias in added if alias.isdigit()]:
        raise InvalidArgument.field("version_aliases", f'"{wrong[0]}" looks like a version; begin with a letter.')
    with control.database.transaction() as connection:
        target = find_version(connection, project, name)
        versions = sa.select(model_version).where(model_version.c.project == project, model_version.c.model == name.id)
        for row in connection.execute(versions).all():
            resource = orjson.loads(row.resource)
            before = set(resource.get("versionAliases", ()))
            is_target = row.version == target.version
            after = (before | added) - removed if is_target else before - added
            after.discard(DEFAULT_ALIAS)
            if after != before:
                resource["versionAliases"] = sorted(after)
                connection.execute(_one(model_version.update(), row).values(resource=orjson.dumps(resource).decode()))
        if DEFAULT_ALIAS in added:
            connection.execute(model.update().where(_is_model(project, name.id)).values(default_version=target.version))
        return _read(connection, [find_version(connection, project, name)])[0]


def delete(control: Control, principal: Principal, name: ResourceName) -> dict[str, Any]:
    """Remove a model: its versions, endpoints and files in the service's bucket. Gives a done operation."""
    project = iam.require(control.database, principal, "aiplatform.models.delete", name.project, name.on).number
    with control.database.transaction() as connection:
        find_version(connection, project, name)
        rows = connection.execute(
            sa.select(model_version).where(model_version.c.project == project, model_version.c.model == name.id)
        ).all()
        removed = [_delete_version(connection, row) for row in rows]
        connection.execute(model.delete().where(_is_model(project, name.id)))
        made = _deleted(control, connection, name.of_project(project))
    for files in removed:
        leftovers.remove(control, files)
    return made


def delete_version(control: Control, principal: Principal, name: ResourceName) -> dict[str, Any]:
    """Remove one version, not the default one. Gives a done operation. Raises NotFound, FailedPrecondition."""
    project = iam.require(control.database, principal, "aiplatform.models.delete", name.project, name.on).number
    with control.database.transaction() as connection:
        row = find_version(connection, project, name)
        found = connection.execute(sa.select(model).where(_is_model(project, name.id))).one()
        if row.version == found.default_version:
            raise FailedPrecondition(f"{name} is the default version; give that alias to another one first.")
        files = _delete_version(connection, row)
        made = _deleted(control, connection, name.of_project(project))
    leftovers.remove(control, files)
    return made


def _read(connection: Connection, rows: Iterable[AnyRow]) -> list[dict[str, Any]]:
    """The versions as they go over the wire; four statements, however many there are."""
    rows = list(rows)
    if not rows:
        return []
    project = rows[0].project
    found_models = sa.select(model.c.id, model.c.default_version).where(
        model.c.project == project, model.c.id.in_({row.model for row in rows})
    )
    defaults = {found.id: found.default_version for found in connection.execute(found_models)}
    deployed: dict[str, list[dict[str, Any]]] = {}
    query = sa.select(endpoint).where(endpoint.c.project == project, endpoint.c.job.in_({row.job for row in rows}))
    for found in connection.execute(query.order_by(endpoint.c.id)):
        if found.checkpoint_id:
            name = ResourceName(project, found.location, "endpoints", found.id)
            deployed.setdefault(found.job, []).append(
                {"endpoint": str(name), "deployedModelId": found.id, "checkpointId": found.checkpoint_id}
            )
    certificates = _certificates(connection, project, {row.job for row in rows})
    answers = []
    for row in rows:
        resource = orjson.loads(row.resource)
        if row.job in certificates:
            resource["metadata"] = resource.get("metadata", {}) | {"parityCertificates": certificates[row.job]}
        resource["supportedExportFormats"] = [{"id": one, "exportableContents": ["ARTIFACT"]} for one in FORMATS]
        aliases = resource.get("versionAliases", [])
        if defaults.get(row.model) == row.version:
            aliases = [DEFAULT_ALIAS, *aliases]
        resource["defaultCheckpointId"] = row.default_checkpoint
        resource["deployedModels"] = deployed.get(row.job, [])
        resource["versionAliases"] = aliases
        answers.append({key: value for key, value in resource.items() if value not in ("", [], {})})
    return answers


def _certificates(connection: Connection, project: str, jobs: set[str]) -> dict[str, dict[str, Any]]:
    """By job and checkpoint: how serving compared with training before the endpoint was announced."""
    query = sa.select(checkpoint.c.job, checkpoint.c.checkpoint_id, checkpoint.c.resource).where(
        checkpoint.c.project == project, checkpoint.c.job.in_(jobs)
    )
    found: dict[str, dict[str, Any]] = {}
    for row in connection.execute(query):
        if certificate := orjson.loads(row.resource).get("certificate"):
            wire = {to_camel(key): value for key, value in certificate.items()}
            found.setdefault(row.job, {})[row.checkpoint_id] = wire
    return found


def _known_checkpoint(resource: dict[str, Any], wanted: str) -> str:
    known = [one["checkpointId"] for one in resource["checkpoints"]]
    if wanted not in known:
        raise InvalidArgument.field(
            "model.default_checkpoint_id", f'There is no checkpoint "{wanted}"; use one of {", ".join(known)}.'
        )
    return wanted


def _one(statement: sa.Update, row: AnyRow) -> sa.Update:
    return statement.where(
        model_version.c.project == row.project,
        model_version.c.model == row.model,
        model_version.c.version == row.version,
    )


def _is_model(project: str, model_id: str) -> sa.ColumnElement[bool]:
    return sa.and_(model.c.project == project, model.c.id == model_id)


def _delete_version(connection: Connection, row: AnyRow) -> Leftovers:
    connection.execute(
        model_version.delete().where(
            model_version.c.project == row.project,
            model_version.c.model == row.model,
            model_version.c.version == row.version,
        )
    )
    return leftovers.forget_checkpoints(connection, row.project, row.job)


def _deleted(control: Control, connection: Connection, name: ResourceName) -> dict[str, Any]:
    return operations.deleted(connection, name.parent, f"models/{name.id}", control.database.now(connection))
