"""Projects: a number, an id people write, and nothing else. Found by either; answers carry the number.

What was found, and what was not, is remembered for a second: both cost the same.
Used by `iam` for every call, and by the API.
"""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass
from functools import lru_cache

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from sarto.control.roles import AGENT_ROLES
from sarto.errors import AlreadyExists, InvalidArgument
from sarto.names import PROJECT
from sarto.storage import tables
from sarto.storage.database import Database

AGENT_DOMAIN = "gcp-sa-vertex-tune.iam.gserviceaccount.com"


@dataclass(frozen=True)
class Project:
    id: str
    number: str
    create_time: float

    @property
    def agent(self) -> str:
        """E-mail of the service agent: whom a job runs as that names no account of its own."""
        return f"service-{self.number}@{AGENT_DOMAIN}"


@lru_cache(maxsize=4096)
def _remembered(database: Database, text: str, _second: int) -> Project | None:
    """By id or number."""
    table = tables.project
    with database.reading() as connection:
        row = connection.execute(sa.select(table).where((table.c.id == text) | (table.c.number == text))).first()
    return None if row is None else Project(row.id, row.number, row.create_time)


def find(database: Database, text: str) -> Project | None:
    """By id or number; a project that another server made is known after a second."""
    return _remembered(database, text, int(time.monotonic()))


def insert(connection: Connection, project_id: str, now: float) -> Project:
    """A new project with a fresh 12-digit number. Raises AlreadyExists and InvalidArgument."""
    if not PROJECT.fullmatch(project_id) or project_id.isdigit():
        raise InvalidArgument.field(
            "project.project_id", f'"{project_id}" is not a project id: 4 to 30 lower case letters, digits and hyphens'
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
