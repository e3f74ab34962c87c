"""About the service itself: health, the API description and its page."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import orjson
import sqlalchemy as sa
from starlette.requests import Request

from sarto.api import tokens
from sarto.api.http import Reply, in_thread, reply, services
from sarto.errors import Unavailable
from sarto.storage.database import Database


async def healthy(request: Request) -> Reply:
    """The process answers."""
    return reply({"status": "ok"})


async def ready(request: Request) -> Reply:
    """The database answers too."""
    await in_thread(request, _ask, services(request).database)
    return reply({"status": "ok"})


async def root(request: Request) -> Reply:
    """A person is shown the API page; a library that looks for a metadata server gets its answer."""
    if request.headers.get("metadata-flavor") == "Google":
        return await tokens.metadata_root(request)
    return Reply(status=303, headers=[(b"location", b"/docs")])


async def openapi(request: Request) -> Reply:
    return Reply(_description())


async def docs(request: Request) -> Reply:
    return Reply(_page(), content_type=b"text/html; charset=utf-8")


def _ask(database: Database) -> None:
    try:
        with database.reading() as connection:
            connection.execute(sa.select(1))
    except sa.exc.SQLAlchemyError as error:
        raise Unavailable(f"The database does not answer: {error}") from None


@lru_cache(maxsize=1)
def _description() -> bytes:
    from sarto.api.openapi import describe  # here, because it reads the route table, which names this module
    from sarto.api.routes import ROUTES

    return orjson.dumps(describe(ROUTES))


@lru_cache(maxsize=1)
def _page() -> bytes:
    return Path(__file__).with_name("docs.html").read_bytes()
