"""Projects: a number and an id. Either is accepted; responses have the number.

Existing and missing projects are both cached for a second, so that a lookup takes the same time for both.
"""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass
from functools import lru_cache

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from sarto.control.access.roles import AGENT_ROLES
from sarto.errors import AlreadyExists, InvalidArgument
from sarto.names import PROJECT, SYSTEM_PROJECT
from sarto.storage.database import tables
from sarto.storage.database.database import Database

AGENT_DOMAIN = "gcp-sa-vertex-tune.iam.gserviceaccount.com"
AGENT_PREFIX = "gcp-sa-"
"""Prefix of reserved project ids: an account of such a project would have the address of a service agent."""


@dataclass(frozen=True)
class Project:
    id: str
    number: str
    create_time: float

    @property
    def agent(self) -> str:
        """E-mail of the service agent, as which a job without an account runs."""
        return f"service-{self.number}@{AGENT_DOMAIN}"


SYSTEM = Project(SYSTEM_PROJECT, "1", 0.0)
"""The project of the service's own accounts. It has no row: nothing lists, owns or changes it. Numbers of other
projects have 12 digits."""


@lru_cache(maxsize=4096)
def _remembered(database: Database, text: str, _second: int) -> Project | None:
    """Find by id or number, cached."""
    table = tables.project
    with database.reading() as connection:
        row = connection.execute(sa.select(table).where((table.c.id == text) | (table.c.number == text))).first()
    return None if row is None else Project(row.id, row.number, row.create_time)


def find(database: Database, text: str) -> Project | None:
    """Find by id or number; a project that another server created is found after a second."""
    if text in (SYSTEM.id, SYSTEM.number):
        return SYSTEM
    return _remembered(database, text, int(time.monotonic()))


def insert(connection: Connection, project_id: str, now: float) -> Project:
    """Create a project with a new 12-digit number. Raises AlreadyExists and InvalidArgument."""
    if not PROJECT.fullmatch(project_id) or project_id.isdigit():
        raise InvalidArgument.field(
            "project.project_id", f'"{project_id}" is not a project id: 4 to 30 lower case letters, digits and hyphens.'
        )
    if project_id.startswith(AGENT_PREFIX):
        raise InvalidArgument.field(
            "project.project_id", f'"{project_id}": ids that begin with {AGENT_PREFIX} are those of service agents.'
        )
    table = tables.project
    if connection.execute(sa.select(table.c.id).where(table.c.id == project_id)).first():
        raise AlreadyExists(f"Project '{project_id}' already exists.")
    project = Project(project_id, str(100_000_000_000 + secrets.randbelow(900_000_000_000)), now)
    connection.execute(table.insert().values(number=project.number, id=project.id, create_time=now))
    _remembered.cache_clear()
    agent = {"resource": f"projects/{project.number}", "member": f"serviceAccount:{project.agent}"}
    connection.execute(tables.binding.insert(), [{**agent, "role": role} for role in AGENT_ROLES])
    return project


def all_projects(database: Database) -> list[Project]:
    table = tables.project
    with database.reading() as connection:
        rows = connection.execute(sa.select(table).order_by(table.c.create_time, table.c.id)).all()
    return [Project(row.id, row.number, row.create_time) for row in rows]
