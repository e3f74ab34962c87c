"""Resolves a model name to base weights and, for a tuned model, an adapter.

Accepts endpoint names, model names with or without version or alias, publisher models, and bare ids.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import orjson
import sqlalchemy as sa
from pydantic.alias_generators import to_camel
from sqlalchemy.engine import Connection

from sarto.contract.common import FULL
from sarto.control.access import authorization
from sarto.control.access.principal import Principal
from sarto.control.context import AnyRow, Control
from sarto.control.models.checkpoint_origin import CheckpointOrigin
from sarto.errors import FailedPrecondition, InvalidArgument, NotFound
from sarto.names import ResourceName, check_id, parse_location, parse_resource
from sarto.storage.database.tables import checkpoint, endpoint, model, model_version

PREDICT = "aiplatform.endpoints.predict"
DEFAULT_ALIAS = "default"


@dataclass(frozen=True)
class ResolvedModel:
    """The model of a name. Without `adapter_digest` it is an untuned base model."""

    weights: str
    """Id of the base weights, of the catalogue or custom."""
    base_model: str
    """The base model by the user's name for it."""
    adapter_folder: str = ""
    """Relative to the home."""
    adapter_digest: str = ""
    rank: int = 0
    project: str = ""
    """The project of the tuned model; for a base model, the project in the request's path, if any."""
    location: str = ""
    model_id: str = ""
    version: int = 0
    checkpoint_id: str = ""
    endpoint_id: str = ""
    display_name: str = ""
    kms_key: str = ""
    """The key under which the adapter is encrypted."""
    tenant: str = ""
    """Owner of the cached prompts that the request may use: see `tenant_of`."""

    @property
    def versioned_name(self) -> str:
        """The tuned model's name with its version; empty for a base model or a checkpoint of a running job."""
        if not self.model_id:
            return ""
        return str(ResourceName(self.project, self.location, "models", self.model_id, str(self.version)))

    @property
    def endpoint_name(self) -> str:
        return str(ResourceName(self.project, self.location, "endpoints", self.endpoint_id)) if self.endpoint_id else ""


def resolve(control: Control, principal: Principal, name: str) -> ResolvedModel:
    """Resolve `name`. Raises NotFound (with its region), FailedPrecondition, InvalidArgument."""
    resolved = _resolved(control, principal, name)
    return replace(resolved, tenant=tenant_of(principal, resolved.project))


def tenant_of(principal: Principal, project: str) -> str:
    """The group that shares cached prompts: callers of one project who use one project's models. Users of a provider
    have no project, so each is alone for base models by their bare names."""
    return f"{project}/{principal.project}" if project else principal.project or principal.member


def _resolved(control: Control, principal: Principal, name: str) -> ResolvedModel:
    parts = name.split("/")
    if "publishers" in parts:
        return _publisher_model(control, principal, name)
    if len(parts) == 6 and parts[4] == "endpoints":
        return _endpoint(control, principal, parse_resource(name, "endpoints"))
    if len(parts) == 6 and parts[4] == "models":
        return tuned(control, principal, name)
    if len(parts) == 1 or parts[0] == "models":
        authorization.require_somewhere(control.database, principal, PREDICT)
        return _base(control, name)
    raise InvalidArgument(
        f'"{name}" names no model; write projects/P/locations/L/endpoints/ID, projects/P/locations/L/models/ID or '
        "publishers/google/models/NAME."
    )


def tuned(control: Control, principal: Principal, name: str, checkpoint_id: str = "") -> ResolvedModel:
    """A tuned model by `…/models/ID`, `…@VERSION` or `…@ALIAS`, at a checkpoint or its default one."""
    parsed = parse_resource(name, "models", versioned=True)
    project = authorization.require(control.database, principal, PREDICT, parsed.project, parsed.on).number
    with control.database.reading() as connection:
        version = find_version(connection, project, parsed)
        chosen = checkpoint_id or version.default_checkpoint
        row = connection.execute(
            sa.select(checkpoint).where(
                checkpoint.c.project == project,
                checkpoint.c.job == version.job,
                checkpoint.c.checkpoint_id == chosen,
            )
        ).first()
    if row is None:
        raise NotFound(f'{name} has no checkpoint "{chosen}".')
    display_name = orjson.loads(version.resource).get("displayName", "")
    deployed = _of_checkpoint(row, project, parsed.location)
    return replace(deployed, model_id=parsed.id, version=version.version, display_name=display_name)


def find_version(connection: Connection, project: str, name: ResourceName) -> AnyRow:
    """The row of a model's version: the named one, or the default. Raises NotFound."""
    model_row = connection.execute(sa.select(model).where(model.c.project == project, model.c.id == name.id)).first()
    check_found(model_row, name, "Model")
    assert model_row is not None
    versions = sa.select(model_version).where(model_version.c.project == project, model_version.c.model == name.id)
    if not name.version or name.version == DEFAULT_ALIAS:
        number = model_row.default_version
    elif name.version.isdigit():
        number = int(name.version[:9])
    else:
        for row in connection.execute(versions):
            if name.version in orjson.loads(row.resource).get("versionAliases", ()):
                return row
        number = 0
    version = connection.execute(versions.where(model_version.c.version == number)).first()
    if version is None:
        raise NotFound(f"Model {name} has no such version or alias.")
    return version


def check_found(row: AnyRow | None, name: ResourceName, kind: str) -> None:
    """Raises NotFound for a missing row, and for one in another region, with that region."""
    if row is None:
        raise NotFound(f"{kind} {name} is not found.")
    if row.location != name.location:
        raise NotFound(
            f"{kind} {name} is not found: it is in {row.location}, not in {name.location}; "
            f"use projects/{name.project}/locations/{row.location}/{name.collection}/{name.id}."
        )


def _endpoint(control: Control, principal: Principal, name: ResourceName) -> ResolvedModel:
    project = authorization.require(control.database, principal, PREDICT, name.project, name.on).number
    endpoint_row = _endpoint_row(control, project, name.id)
    check_found(endpoint_row, name, "Endpoint")
    assert endpoint_row is not None
    return _of_endpoint(endpoint_row, name, project)


def _endpoint_row(control: Control, project: str, endpoint_id: str) -> AnyRow | None:
    query = (
        sa.select(endpoint.c.location, endpoint.c.model, endpoint.c.version, endpoint.c.id, *_CHECKPOINT)
        .select_from(
            endpoint.outerjoin(
                checkpoint,
                sa.and_(
                    checkpoint.c.project == endpoint.c.project,
                    checkpoint.c.job == endpoint.c.job,
                    checkpoint.c.checkpoint_id == endpoint.c.checkpoint_id,
                ),
            )
        )
        .where(endpoint.c.project == project, endpoint.c.id == endpoint_id)
    )
    with control.database.reading() as connection:
        return connection.execute(query).first()


_CHECKPOINT = (
    checkpoint.c.adapter_folder,
    checkpoint.c.adapter_digest,
    checkpoint.c.checkpoint_id,
    checkpoint.c.resource,
    checkpoint.c.endpoint,
)


def _of_endpoint(row: AnyRow, name: ResourceName, project: str) -> ResolvedModel:
    if row.checkpoint_id is None:
        raise FailedPrecondition(f"Endpoint {name} has no deployed model; its model was undeployed or deleted.")
    deployed = _of_checkpoint(row, project, name.location)
    return replace(deployed, model_id=row.model, version=row.version, endpoint_id=row.id)


def _of_checkpoint(row: AnyRow, project: str, location: str) -> ResolvedModel:
    origin = CheckpointOrigin.of(row)
    is_full = origin.is_full
    return ResolvedModel(
        weights=f"{FULL}{row.adapter_digest}" if is_full else origin.weights,
        base_model=origin.base_model,
        adapter_folder="" if is_full else row.adapter_folder,
        adapter_digest="" if is_full else row.adapter_digest,
        rank=origin.rank,
        project=project,
        location=location,
        checkpoint_id=row.checkpoint_id,
        endpoint_id=row.endpoint,
        kms_key=origin.kms_key,
    )


def _publisher_model(control: Control, principal: Principal, name: str) -> ResolvedModel:
    """`[projects/P/locations/L/]publishers/PUBLISHER/models/NAME`; a NAME of digits is an endpoint or model of this
    server."""
    prefix, _, rest = name.partition("publishers/")
    parts = rest.split("/")
    if len(parts) != 3 or parts[1] != "models":
        raise InvalidArgument(f'"{name}" is not of the form publishers/PUBLISHER/models/NAME.')
    if not prefix:
        authorization.require_somewhere(control.database, principal, PREDICT)
        return _base(control, f"publishers/{rest}")
    location = parse_location(prefix.removesuffix("/"))
    plain = parts[2].partition("@")[0]
    if not plain.isdigit():
        project = authorization.require(control.database, principal, PREDICT, location.project).number
        return replace(_base(control, f"publishers/{rest}"), project=project)
    check_id(plain)
    as_endpoint = ResourceName(location.project, location.location, "endpoints", plain)
    project = authorization.require(control.database, principal, PREDICT, location.project).number
    endpoint_row = _endpoint_row(control, project, plain)
    if endpoint_row is not None:
        check_found(endpoint_row, as_endpoint, "Endpoint")
        return _of_endpoint(endpoint_row, as_endpoint, project)
    return tuned(control, principal, f"{location}/models/{parts[2]}")


def _base(control: Control, name: str) -> ResolvedModel:
    try:
        entry = control.catalog.find(name, "model")
    except InvalidArgument as error:
        raise NotFound(error.violations[0].description) from None
    return ResolvedModel(weights=entry.weights.id, base_model=entry.name)


def announced_adapters(control: Control, weights: str) -> list[tuple[str, Path]]:
    """(digest, folder) of every published adapter on these base weights, newest first. Adapters under a customer key
    are excluded, because a key cannot be revoked in another process."""
    query = (
        sa.select(checkpoint.c.adapter_digest, checkpoint.c.adapter_folder, checkpoint.c.resource)
        .join(
            endpoint,
            (endpoint.c.project == checkpoint.c.project)
            & (endpoint.c.job == checkpoint.c.job)
            & (endpoint.c.checkpoint_id == checkpoint.c.checkpoint_id),
        )
        .order_by(checkpoint.c.create_time.desc())
    )
    with control.database.reading() as connection:
        rows = connection.execute(query).all()
    origins = [(row, CheckpointOrigin.of(row)) for row in rows]
    open_ones = [
        row for row, origin in origins if origin.weights == weights and not origin.kms_key and not origin.is_full
    ]
    folders = {row.adapter_digest: row.adapter_folder for row in open_ones}
    return [(digest, control.adapter_folder(folder)) for digest, folder in folders.items()]


def certificates(connection: Connection, project: str, jobs: set[str]) -> dict[str, dict[str, Any]]:
    """The parity certificates by job and checkpoint."""
    query = sa.select(checkpoint.c.job, checkpoint.c.checkpoint_id, checkpoint.c.resource).where(
        checkpoint.c.project == project, checkpoint.c.job.in_(jobs)
    )
    certificates_by_job: dict[str, dict[str, Any]] = {}
    for row in connection.execute(query):
        if certificate := CheckpointOrigin.of(row).certificate:
            wire = {to_camel(key): value for key, value in certificate.items()}
            certificates_by_job.setdefault(row.job, {})[row.checkpoint_id] = wire
    return certificates_by_job
