"""The servers that share a database. Each records its resources while it lives."""

from __future__ import annotations

import socket

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from sarto.configuration import Limits
from sarto.storage.database.database import Database
from sarto.storage.database.tables import server

ALIVE_SECONDS = 60.0
"""Time without a record after which a server counts as gone."""


def tell(database: Database, owner: str, limits: Limits) -> None:
    """Record this server and its resources; removes servers that are long gone."""
    values = {"host": socket.gethostname()[:253], "memory_bytes": limits.run_memory_bytes}
    with database.transaction() as connection:
        now = database.now(connection)
        connection.execute(server.delete().where((server.c.owner == owner) | (server.c.until < now - ALIVE_SECONDS)))
        connection.execute(server.insert().values(owner=owner, until=now + ALIVE_SECONDS, **values))


def leave(database: Database, owner: str) -> None:
    with database.transaction() as connection:
        connection.execute(server.delete().where(server.c.owner == owner))


_LIVING = sa.select(server.c.memory_bytes).where(server.c.until >= sa.bindparam("now"))


def largest_memory(connection: Connection, now: float, limits: Limits) -> int:
    """Memory for runs on the largest live server, this one included; 0 if one has no limit."""
    living = connection.execute(_LIVING, {"now": now}).scalars().all()
    sizes = [limits.run_memory_bytes, *living]
    return 0 if 0 in sizes else max(sizes)
