"""The whole application in this process, and callers of it with any role."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx

from sarto.api.http.application import Application
from sarto.api.http.services import Services
from sarto.api.routes import ROUTES
from sarto.assembly.app import running
from sarto.control.access import account_store, authorization, projects
from sarto.settings import Settings
from sarto.storage.database.database import Database

ADDRESS = "http://127.0.0.1:1"
Database.refuses_second = True


class House:
    """A running service with project `demo`, and clients of it."""

    def __init__(self, services: Services, key_file: Path | None) -> None:
        self.services, self.key_file = services, key_file
        self.doors = Application(ROUTES)
        self.doors.services = services
        self.tokens: dict[str, str] = {}
        transport = httpx.ASGITransport(app=self.doors)
        self.client = httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1")

    def account(self, name: str, role: str = "", project: str = "demo") -> str:
        """Make an account with a role in its project; gives its address."""
        database = self.services.database
        found = projects.find(database, project)
        with database.transaction() as connection:
            owner = found or projects.insert(connection, project, 0.0)
            made = account_store.create(connection, owner, name, role, 0.0)
            key = account_store.create_key(connection, made, owner.id, 0.0)
        database.rights_changes += 1
        self.tokens[name] = self.token_of(key["private_key_id"])
        return made.email

    def token_of(self, key_id: str) -> str:
        key = account_store.find_key(self.services.database, key_id)
        assert key is not None
        return str(self.services.authenticator.issue(key)["access_token"])

    def bind(self, email: str, role: str, on: str = "", project: str = "demo") -> None:
        found = projects.find(self.services.database, project)
        assert found is not None
        with self.services.database.transaction() as connection:
            key = f"projects/{found.number}" + (f"/{on}" if on else "")
            authorization.bind(connection, key, role, f"serviceAccount:{email}")
        self.services.database.rights_changes += 1

    async def ask(self, name: str, method: str, path: str, body: Any = None, **more: Any) -> httpx.Response:
        """A request by the account of that name; empty: without a token."""
        headers = {"Authorization": f"Bearer {self.tokens[name]}"} if name else {}
        return await self.client.request(method, path, json=body, headers=headers, **more)


@asynccontextmanager
async def house(home: Path, **settings: Any) -> AsyncIterator[House]:
    async with running(Settings(home=home, project="demo", allow_root=True, **settings), ADDRESS) as (
        services,
        key_file,
    ):
        yield House(services, key_file)
