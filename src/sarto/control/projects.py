"""Projects: a number, an id people write, and nothing else. Found by either; answers carry the number.

Projects are never removed, so what was found once may be remembered. Used by `iam` for every call, and by the API.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from functools import lru_cache

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from sarto.errors import AlreadyExists, InvalidArgument
from sarto.names import PROJECT
from sarto.storage import tables
from sarto.storage.database import Database


@dataclass(frozen=True)
class Project:
    id: str
    number: str
    create_time: float


@lru_cache(maxsize=4096)
def _remembered(database: Database, text: str) -> Project:
    """By id or number. Raises LookupError, which is not remembered."""
    table = tables.project
    with database.reading() as connection:
        row = connection.execute(sa.select(table).where((table.c.id == text) | (table.c.number == text))).first()
    if row is None:
        raise LookupError(text)
    return Project(row.id, row.number, row.create_time)


def find(database: Database, text: str) -> Project | None:
    try:
        return _remembered(database, text)
    except LookupError:
        return None


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
    return project


def all_projects(database: Database) -> list[Project]:
    table = tables.project
    with database.reading() as connection:
        rows = connection.execute(sa.select(table).order_by(table.c.create_time, table.c.id)).all()
    return [Project(row.id, row.number, row.create_time) for row in rows]
