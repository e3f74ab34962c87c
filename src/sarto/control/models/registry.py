"""The registry of tuned models: get, list, versions, update, delete. `resolution` resolves a name.

A version's row holds its constant fields. Default alias, default checkpoint and endpoints are added at each read.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import orjson
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from sarto.contract.export_run import FORMATS, WHOLE_FORMATS
from sarto.control import operations
from sarto.control.access import authorization
from sarto.control.access.principal import Principal
from sarto.control.aip import filters, labels, pages, times
from sarto.control.aip.labels import NAME_CHARACTERS
from sarto.control.context import AnyRow, Control
from sarto.control.models import checkpoint_deletion, resolution
from sarto.control.models.checkpoint_deletion import UnreferencedFiles
from sarto.control.models.resolution import DEFAULT_ALIAS, ResolvedModel, find_version, resolve
from sarto.errors import FailedPrecondition, InvalidArgument
from sarto.names import LocationName, ResourceName, check_id
from sarto.schema.models import Model
from sarto.storage.database.tables import endpoint, model, model_version

__all__ = [
    "ResolvedModel", "delete", "delete_version", "get", "list_models", "list_versions", "merge_version_aliases",
    "resolve", "update",
]  # fmt: skip

TUNING_MODE = "tuningMode"
"""In the metadata of a fully tuned model."""
UPDATABLE = frozenset({"display_name", "description", "labels", "default_checkpoint_id", "version_description"})


def get(control: Control, principal: Principal, name: ResourceName) -> dict[str, Any]:
    """The default version, or the one after `@`. Raises NotFound."""
    project = authorization.require(control.database, principal, "aiplatform.models.get", name.project, name.on).number
    with control.database.reading() as connection:
        return _read(connection, [find_version(connection, project, name)])[0]


def list_models(
    control: Control,
    principal: Principal,
    parent: LocationName,
    page_size: int = 0,
    page_token: str = "",
    filter: str = "",
) -> tuple[list[dict[str, Any]], str]:
    """Default versions, newest model first, and the token of the next page."""
    project = authorization.require(control.database, principal, "aiplatform.models.list", parent.project).number
    page = pages.requested(page_size, page_token, "models", project, parent.location, filter)
    tree = filters.parse(filter)
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
        .where(pages.within(model, project, parent.location))
        .order_by(model.c.id.desc())
    )

    def after(key: str, limit: int) -> list[tuple[str, dict[str, Any]]]:
        with control.database.reading() as connection:
            rows = connection.execute((query.where(model.c.id < key) if key else query).limit(limit)).all()
            return list(zip((row.model for row in rows), _read(connection, rows), strict=True))

    return pages.filtered(after, lambda resource: filters.meets(tree, resource, "model"), page)


def list_versions(
    control: Control, principal: Principal, name: ResourceName, page_size: int = 0, page_token: str = ""
) -> tuple[list[dict[str, Any]], str]:
    """All versions of a model, newest first. Raises NotFound."""
    project = authorization.require(control.database, principal, "aiplatform.models.get", name.project, name.on).number
    page = pages.requested(page_size, page_token, "versions", project, name.id)
    query = sa.select(model_version).where(model_version.c.project == project, model_version.c.model == name.id)
    with control.database.reading() as connection:
        find_version(connection, project, name)
        rows, more = page.read(connection, query, model_version.c.version)
        return _read(connection, rows), more


def update(
    control: Control, principal: Principal, name: ResourceName, requested: Model, mask: Iterable[str] = ()
) -> dict[str, Any]:
    """Change the fields of `mask` (snake_case), without one those that are given. `*` replaces all fields, the default
    checkpoint only if one is given. Raises InvalidArgument, NotFound."""
    project = authorization.require(
        control.database, principal, "aiplatform.models.update", name.project, name.on
    ).number
    fields: frozenset[str] | set[str] = set(mask) or (requested.model_fields_set & UPDATABLE)
    if fields == {"*"}:
        fields = UPDATABLE - ({"default_checkpoint_id"} - requested.model_fields_set)
    if unknown := fields - UPDATABLE:
        raise InvalidArgument.field("update_mask", f"{', '.join(sorted(unknown))} cannot be changed.")
    if not fields:
        raise InvalidArgument.field("model", f"Nothing to change; give one of {', '.join(sorted(UPDATABLE))}.")
    if len(requested.display_name) > NAME_CHARACTERS:
        raise InvalidArgument.field("model.display_name", f"At most {NAME_CHARACTERS} characters are allowed.")
    with control.database.transaction() as connection:
        row = find_version(connection, project, name)
        resource = orjson.loads(row.resource)
        if "labels" in fields:
            labels.check_change(requested.labels, resource.get("labels", {}), "model.labels")
        wire = requested.to_json()
        for field in fields - {"default_checkpoint_id"}:
            key = {"display_name": "displayName", "version_description": "versionDescription"}.get(field, field)
            resource[key] = wire.get(key, {} if field == "labels" else "")
        default = row.default_checkpoint
        if "default_checkpoint_id" in fields:
            default = _known_checkpoint(resource, requested.default_checkpoint_id)
        now = control.database.now(connection)
        resource["updateTime"] = resource["versionUpdateTime"] = times.timestamp(now)
        connection.execute(
            _one(model_version.update(), row).values(
                resource=orjson.dumps(resource).decode(), default_checkpoint=default
            )
        )
        return _read(connection, [find_version(connection, project, name)])[0]


def merge_version_aliases(
    control: Control, principal: Principal, name: ResourceName, aliases: list[str]
) -> dict[str, Any]:
    """Add aliases to a version and remove them from others; `-alias` removes one. `default` can be moved, not
    removed."""
    project = authorization.require(
        control.database, principal, "aiplatform.models.update", name.project, name.on
    ).number
    added = {check_id(alias, "alias") for alias in aliases if not alias.startswith("-")}
    removed = {alias[1:] for alias in aliases if alias.startswith("-")}
    if DEFAULT_ALIAS in removed:
        raise InvalidArgument.field("version_aliases", 'Give "default" to another version instead of removing it.')
    if wrong := [alias for alias in added if alias.isdigit()]:
        raise InvalidArgument.field("version_aliases", f'"{wrong[0]}" looks like a version; start with a letter.')
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
    """Remove a model: its versions, endpoints and files in the service's bucket. Returns a finished operation."""
    project = authorization.require(
        control.database, principal, "aiplatform.models.delete", name.project, name.on
    ).number
    with control.database.transaction() as connection:
        find_version(connection, project, name)
        rows = connection.execute(
            sa.select(model_version).where(model_version.c.project == project, model_version.c.model == name.id)
        ).all()
        removed = [_delete_version(connection, row) for row in rows]
        connection.execute(model.delete().where(_is_model(project, name.id)))
        operation = _deleted(control, connection, name.of_project(project))
    for files in removed:
        checkpoint_deletion.remove(control, files)
    return operation


def delete_version(control: Control, principal: Principal, name: ResourceName) -> dict[str, Any]:
    """Remove one version, except the default one. Returns a finished operation. Raises NotFound, FailedPrecondition."""
    project = authorization.require(
        control.database, principal, "aiplatform.models.delete", name.project, name.on
    ).number
    with control.database.transaction() as connection:
        row = find_version(connection, project, name)
        model_row = connection.execute(sa.select(model).where(_is_model(project, name.id))).one()
        if row.version == model_row.default_version:
            raise FailedPrecondition(f"{name} is the default version; give that alias to another one first.")
        files = _delete_version(connection, row)
        operation = _deleted(control, connection, name.of_project(project))
    checkpoint_deletion.remove(control, files)
    return operation


def _read(connection: Connection, rows: Iterable[AnyRow]) -> list[dict[str, Any]]:
    """The versions in the API's form, by four statements for any number of versions."""
    rows = list(rows)
    if not rows:
        return []
    project = rows[0].project
    model_rows = sa.select(model.c.id, model.c.default_version).where(
        model.c.project == project, model.c.id.in_({row.model for row in rows})
    )
    defaults = {each.id: each.default_version for each in connection.execute(model_rows)}
    deployed: dict[str, list[dict[str, Any]]] = {}
    query = sa.select(endpoint).where(endpoint.c.project == project, endpoint.c.job.in_({row.job for row in rows}))
    for each in connection.execute(query.order_by(endpoint.c.id)):
        if each.checkpoint_id:
            name = ResourceName(project, each.location, "endpoints", each.id)
            deployed.setdefault(each.job, []).append(
                {"endpoint": str(name), "deployedModelId": each.id, "checkpointId": each.checkpoint_id}
            )
    certificates = resolution.certificates(connection, project, {row.job for row in rows})
    answers = []
    for row in rows:
        resource = orjson.loads(row.resource)
        if row.job in certificates:
            resource["metadata"] = resource.get("metadata", {}) | {"parityCertificates": certificates[row.job]}
        formats = WHOLE_FORMATS if TUNING_MODE in resource.get("metadata", {}) else FORMATS
        resource["supportedExportFormats"] = [{"id": one, "exportableContents": ["ARTIFACT"]} for one in formats]
        aliases = resource.get("versionAliases", [])
        if defaults.get(row.model) == row.version:
            aliases = [DEFAULT_ALIAS, *aliases]
        resource["defaultCheckpointId"] = row.default_checkpoint
        resource["deployedModels"] = deployed.get(row.job, [])
        resource["versionAliases"] = aliases
        answers.append({key: value for key, value in resource.items() if value not in ("", [], {})})
    return answers


def _known_checkpoint(resource: dict[str, Any], checkpoint_id: str) -> str:
    known = [one["checkpointId"] for one in resource["checkpoints"]]
    if checkpoint_id not in known:
        raise InvalidArgument.field(
            "model.default_checkpoint_id", f'There is no checkpoint "{checkpoint_id}"; use one of {", ".join(known)}.'
        )
    return checkpoint_id


def _one(statement: sa.Update, row: AnyRow) -> sa.Update:
    return statement.where(
        model_version.c.project == row.project,
        model_version.c.model == row.model,
        model_version.c.version == row.version,
    )


def _is_model(project: str, model_id: str) -> sa.ColumnElement[bool]:
    return sa.and_(model.c.project == project, model.c.id == model_id)


def _delete_version(connection: Connection, row: AnyRow) -> UnreferencedFiles:
    connection.execute(
        model_version.delete().where(
            model_version.c.project == row.project,
            model_version.c.model == row.model,
            model_version.c.version == row.version,
        )
    )
    return checkpoint_deletion.forget_checkpoints(connection, row.project, row.job)


def _deleted(control: Control, connection: Connection, name: ResourceName) -> dict[str, Any]:
    return operations.deleted(connection, name.parent, f"models/{name.id}", control.database.now(connection))
