"""Names of tuned models in OpenAI's form: `ft:BASE:PROJECT:SUFFIX:CODE`, for a checkpoint with `:ckpt-step-N` behind.

The code is the time in an endpoint's id, to the microsecond, in base 62: eight characters until 2031, then nine. So a
name needs no table: it is found by the primary key of the endpoints.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

import orjson
import sqlalchemy as sa

from sarto.control.access import authorization, projects
from sarto.control.access.principal import Principal
from sarto.control.context import AnyRow, Control
from sarto.control.models.checkpoint_origin import CheckpointOrigin
from sarto.control.models.resolution import PREDICT
from sarto.errors import NotFound
from sarto.names import ResourceName
from sarto.storage.database.tables import checkpoint, endpoint, tuning_job

PREFIX = "ft:"
SUFFIX = re.compile(r"[A-Za-z0-9._-]{1,64}")
DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
BEGIN = 1_735_689_600_000_000
"""2025-01-01 in microseconds since 1970, from which the codes count."""
CODE_CHARACTERS = 8
_NAME = re.compile(r"ft:([^:]{1,256}):([a-z0-9-]{4,30}):([^:]{0,64}):([A-Za-z0-9]{8,10})(:ckpt-step-[0-9]{1,12})?")


@dataclass(frozen=True)
class TunedEndpoint:
    """The endpoint behind a name. `model` is empty while its job runs."""

    name: ResourceName
    model: str
    version: int
    checkpoint_id: str
    is_checkpoint: bool
    """Whether the name is that of one checkpoint."""


def name_of(base: str, project: str, suffix: str, endpoint_id: str, step: int | None = None) -> str:
    """The name of an endpoint of the project with this id; empty for an endpoint from before the codes' begin."""
    number = int(endpoint_id) // 1000 - BEGIN
    if number < 0:
        return ""
    name = f"{PREFIX}{base}:{project}:{suffix}:{_code(number)}"
    return name if step is None else f"{name}:ckpt-step-{step}"


def find(control: Control, principal: Principal, name: str) -> TunedEndpoint:
    """The endpoint of a name. Raises NotFound, and PermissionDenied for a caller who may not use it."""
    missing = NotFound(f'Model "{name[:400]}" does not exist; GET models lists those that do.')
    match = _NAME.fullmatch(name)
    if match is None:
        raise missing
    base, project_id, _, code, step = match.groups()
    authorization.require_within(control.database, principal, PREDICT, project_id)
    project = projects.find(control.database, project_id)
    assert project is not None, "the caller has a right in it"
    row = _row(control, project.number, _number(code))
    if row is None or CheckpointOrigin.of(row).base_model != base:
        raise missing
    found = ResourceName(project.number, row.location, "endpoints", row.id)
    authorization.require(control.database, principal, PREDICT, project.number, found.on)
    return TunedEndpoint(found, row.model, row.version, row.checkpoint_id, step is not None)


def names(control: Control, project: projects.Project, endpoints: Iterable[ResourceName]) -> dict[str, str]:
    """The names of those of the project's endpoints that have a tuned model, by the endpoint's id."""
    ids = [each.id for each in endpoints]
    query = sa.select(endpoint.c.id, checkpoint.c.resource, tuning_job.c.run).join_from(endpoint, checkpoint, _DEPLOYED)
    query = query.outerjoin(
        tuning_job, (tuning_job.c.project == endpoint.c.project) & (tuning_job.c.id == endpoint.c.job)
    )
    with control.database.reading() as connection:
        rows = connection.execute(query.where(endpoint.c.project == project.number, endpoint.c.id.in_(ids))).all()
    return {
        row.id: name_of(CheckpointOrigin.of(row).base_model, project.id, suffix_of(row.run), row.id) for row in rows
    }


def suffix_of(run: str | None) -> str:
    """The suffix that the maker of a job gave, from the job's row."""
    return str(orjson.loads(run).get("extras", {}).get("suffix", "")) if run else ""


def _row(control: Control, project: str, number: int) -> AnyRow | None:
    lowest = (number + BEGIN) * 1000
    query = (
        sa.select(endpoint.c.id, endpoint.c.location, endpoint.c.model, endpoint.c.version)
        .add_columns(endpoint.c.checkpoint_id, checkpoint.c.resource)
        .join_from(endpoint, checkpoint, _DEPLOYED)
        .where(endpoint.c.project == project, endpoint.c.id.between(str(lowest), str(lowest + 999)))
        .limit(1)
    )
    with control.database.reading() as connection:
        return connection.execute(query).first()


_DEPLOYED = sa.and_(
    checkpoint.c.project == endpoint.c.project,
    checkpoint.c.job == endpoint.c.job,
    checkpoint.c.checkpoint_id == endpoint.c.checkpoint_id,
)


def _code(number: int) -> str:
    digits = ""
    while number:
        number, rest = divmod(number, len(DIGITS))
        digits = DIGITS[rest] + digits
    return digits.rjust(CODE_CHARACTERS, DIGITS[0])


def _number(code: str) -> int:
    number = 0
    for digit in code:
        number = number * len(DIGITS) + DIGITS.index(digit)
    return number
