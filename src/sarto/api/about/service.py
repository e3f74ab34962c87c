"""The service itself: health, the API description and its page."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import sqlalchemy as sa
from starlette.requests import Request

from sarto.api.http.responses import Reply, reply
from sarto.api.http.routing import PUBLIC, Route
from sarto.api.http.services import in_thread, services
from sarto.api.iam import tokens
from sarto.errors import Unavailable
from sarto.storage.database.database import Database


async def healthy(request: Request) -> Reply:
    """The process responds."""
    return reply({"status": "ok"})


async def ready(request: Request) -> Reply:
    """The database responds too."""
    await in_thread(request, _ask, services(request).database)
    return reply({"status": "ok"})


async def root(request: Request) -> Reply:
    """The API page for a browser; for a library that looks for a metadata server, the response of one."""
    if request.headers.get("metadata-flavor") == "Google":
        return await tokens.metadata_root(request)
    return Reply(status=303, headers=[(b"location", b"/docs")])


async def openapi(request: Request) -> Reply:
    return Reply(services(request).openapi())


async def docs(request: Request) -> Reply:
    return Reply(_page(), content_type=b"text/html; charset=utf-8")


def _ask(database: Database) -> None:
    try:
        with database.reading() as connection:
            connection.execute(sa.select(1))
    except sa.exc.SQLAlchemyError as error:
        raise Unavailable(f"The database does not answer: {error}") from None


@lru_cache(maxsize=1)
def _page() -> bytes:
    return Path(__file__).with_name("docs.html").read_bytes()


ROUTES = [
    Route("GET", "/", root, PUBLIC, "The API page", response="text/html", query=None),
    Route("GET", "/healthz", healthy, PUBLIC, "Whether the process responds"),
    Route("GET", "/readyz", ready, PUBLIC, "Whether the database responds too"),
    Route("GET", "/openapi.json", openapi, PUBLIC, "This description"),
    Route("GET", "/docs", docs, PUBLIC, "A page that shows this description", response="text/html"),
]
