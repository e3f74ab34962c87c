"""From any name a caller may write to what answers it: base weights, and an adapter where the model was tuned.

Endpoint names, model names with or without version or alias, publisher models, and bare ids of our own are all read.
Used by `models`, `validation` and the doors of generation; gives no tensors.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import orjson
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from sarto.control import iam
from sarto.control.auth import Principal
from sarto.control.context import AnyRow, Control
from sarto.errors import FailedPrecondition, InvalidArgument, NotFound
from sarto.names import ResourceName, check_id, parse_location, parse_resource
from sarto.storage.tables import checkpoint, endpoint, model, model_version

PREDICT = "aiplatform.endpoints.predict"
DEFAULT_ALIAS = "default"


@dataclass(frozen=True)
class Deployed:
    """What answers a name. Without `adapter_digest` it is a base model as it is."""

    weights: str
    """Id of the base weights, in the catalogue or of a user's own."""
    base_model: str
    """The base model by the name its user wrote."""
    adapter_folder: str = ""
    adapter_digest: str = ""
    rank: int = 0
    project: str = ""
    location: str = ""
    model_id: str = ""
    version: int = 0
    checkpoint_id: str = ""
    endpoint_id: str = ""
    display_name: str = ""
    kms_key: str = ""
    """The key that the adapter is sealed under."""

    @property
    def versioned_name(self) -> str:
        """The tuned model's name with its version; empty for a base model or a checkpoint of a job that still runs."""
        if not self.model_id:
            return ""
        return str(ResourceName(self.project, self.location, "models", self.model_id, str(self.version)))

    @property
    def endpoint_name(self) -> str:
        return str(ResourceName(self.project, self.location, "endpoints", self.endpoint_id)) if self.endpoint_id else ""


def resolve(control: Control, principal: Principal, name: str) -> Deployed:
    """What answers `name`. Raises NotFound (saying which region has it), FailedPrecondition, InvalidArgument."""
    parts = name.split("/")
    if "publishers" in parts:
        return _publisher_model(control, principal, name)
    if len(parts) == 6 and parts[4] == "endpoints":
        return _endpoint(control, principal, parse_resource(name, "endpoints"))
    if len(parts) == 6 and parts[4] == "models":
        return tuned(control, principal, name)
    if len(parts) == 1 or parts[0] == "models":
        iam.require_somewhere(control.database, principal, PREDICT)
        return _base(control, name)
    raise InvalidArgument(
        f'"{name}" names no model; write projects/P/locations/L/endpoints/ID, projects/P/locations/L/models/ID or '
        "publishers/google/models/NAME"
    )


def tuned(control: Control, principal: Principal, name: str, checkpoint_id: str = "") -> Deployed:
    """A tuned model by `…/models/ID`, `…@VERSION` or `…@ALIAS`, at a checkpoint or its default one."""
    parsed = parse_resource(name, "models", versioned=True)
    project = iam.require(control.database, principal, PREDICT, parsed.project, parsed.on).number
    with control.database.reading() as connection:
        version = find_version(connection, project, parsed)
        wanted = checkpoint_id or version.default_checkpoint
        row = connection.execute(
            sa.select(checkpoint).where(
                checkpoint.c.project == project,
                checkpoint.c.job == version.job,
                checkpoint.c.checkpoint_id == wanted,
            )
        ).first()
    if row is None:
        raise NotFound(f'{name} has no checkpoint "{wanted}".')
    display_name = orjson.loads(version.resource).get("displayName", "")
    deployed = _of_checkpoint(row, project, parsed.location)
    return replace(deployed, model_id=parsed.id, version=version.version, display_name=display_name)


def find_version(connection: Connection, project: str, name: ResourceName) -> AnyRow:
    """The row of a model's version: the named one, or the default. Raises NotFound."""
    found = connection.execute(sa.select(model).where(model.c.project == project, model.c.id == name.id)).first()
    check_found(found, name, "Model")
    assert found is not None
    versions = sa.select(model_version).where(model_version.c.project == project, model_version.c.model == name.id)
    if not name.version or name.version == DEFAULT_ALIAS:
        number = found.default_version
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
    """Raises NotFound for a missing row, and for one in another region, which it names."""
    if row is None:
        raise NotFound(f"{kind} {name} is not found.")
    if row.location != name.location:
        raise NotFound(
            f"{kind} {name} is not found: it is in {row.location}, not in {name.location}; "
            f"use projects/{name.project}/locations/{row.location}/{name.collection}/{name.id}"
        )


def _endpoint(control: Control, principal: Principal, name: ResourceName) -> Deployed:
    project = iam.require(control.database, principal, PREDICT, name.project, name.on).number
    found = _endpoint_row(control, project, name.id)
    check_found(found, name, "Endpoint")
    assert found is not None
    return _of_endpoint(found, name)


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


def _of_endpoint(row: AnyRow, name: ResourceName) -> Deployed:
    if row.checkpoint_id is None:
        raise FailedPrecondition(f"Endpoint {name} has no deployed model; its model was undeployed or deleted.")
    deployed = _of_checkpoint(row, name.project, name.location)
    return replace(deployed, model_id=row.model, version=row.version, endpoint_id=row.id)


def _of_checkpoint(row: AnyRow, project: str, location: str) -> Deployed:
    origin = orjson.loads(row.resource)
    return Deployed(
        weights=origin["weights"],
        base_model=origin["baseModel"],
        adapter_folder=row.adapter_folder,
        adapter_digest=row.adapter_digest,
        rank=origin["rank"],
        project=project,
        location=location,
        checkpoint_id=row.checkpoint_id,
        endpoint_id=row.endpoint,
        kms_key=origin.get("kmsKey", ""),
    )


def _publisher_model(control: Control, principal: Principal, name: str) -> Deployed:
    """`[projects/P/locations/L/]publishers/PUBLISHER/models/NAME`; a NAME of digits is an endpoint or model of ours."""
    prefix, _, rest = name.partition("publishers/")
    parts = rest.split("/")
    if len(parts) != 3 or parts[1] != "models":
        raise InvalidArgument(f'"{name}" is not of the form publishers/PUBLISHER/models/NAME')
    if not prefix:
        iam.require_somewhere(control.database, principal, PREDICT)
        return _base(control, f"publishers/{rest}")
    location = parse_location(prefix.removesuffix("/"))
    plain = parts[2].partition("@")[0]
    if not plain.isdigit():
        iam.require(control.database, principal, PREDICT, location.project)
        return _base(control, f"publishers/{rest}")
    check_id(plain)
    as_endpoint = ResourceName(location.project, location.location, "endpoints", plain)
    project = iam.require(control.database, principal, PREDICT, location.project).number
    found = _endpoint_row(control, project, plain)
    if found is not None:
        check_found(found, as_endpoint, "Endpoint")
        return _of_endpoint(found, as_endpoint)
    return tuned(control, principal, f"{location}/models/{parts[2]}")


def _base(control: Control, name: str) -> Deployed:
    try:
        entry = control.catalog.find(name, "model")
    except InvalidArgument as error:
        raise NotFound(error.violations[0].description) from None
    return Deployed(weights=entry.weights.id, base_model=entry.name)
