"""The whole application in this process, and callers of it with any role."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx

from sarto.api.http import Doors, Services
from sarto.api.routes import ROUTES
from sarto.app import running
from sarto.control import iam, projects, service_accounts
from sarto.settings import Settings

ADDRESS = "http://127.0.0.1:1"


class House:
    """A running service with project `demo`, and clients of it."""

    def __init__(self, services: Services, key_file: Path) -> None:
        self.services, self.key_file = services, key_file
        self.doors = Doors(ROUTES)
        self.doors.services = services
        self.tokens: dict[str, str] = {}
        transport = httpx.ASGITransport(app=self.doors)
        self.client = httpx.AsyncClient(transport=transport, base_url="http://test")

    def account(self, name: str, role: str = "", project: str = "demo") -> str:
        """Make an account with a role in its project; gives its address."""
        database = self.services.database
        found = projects.find(database, project)
        with database.transaction() as connection:
            owner = found or projects.insert(connection, project, 0.0)
            made = service_accounts.create(connection, owner, name, role, 0.0)
            key = service_accounts.create_key(connection, made, owner.id, 0.0)
        database.rights_changes += 1
        self.tokens[name] = self.token_of(key["private_key_id"])
        return made.email

    def token_of(self, key_id: str) -> str:
        key = service_accounts.find_key(self.services.database, key_id)
        assert key is not None
        return str(self.services.authenticator.issue(key)["access_token"])

    def bind(self, email: str, role: str, on: str = "", project: str = "demo") -> None:
        found = projects.find(self.services.database, project)
        assert found is not None
        with self.services.database.transaction() as connection:
            key = f"projects/{found.number}" + (f"/{on}" if on else "")
            iam.bind(connection, key, role, f"serviceAccount:{email}")
        self.services.database.rights_changes += 1

    async def ask(self, name: str, method: str, path: str, body: Any = None, **more: Any) -> httpx.Response:
        """A request by the account of that name; empty: without a token."""
        headers = {"Authorization": f"Bearer {self.tokens[name]}"} if name else {}
        return await self.client.request(method, path, json=body, headers=headers, **more)


@asynccontextmanager
async def house(home: Path, **settings: Any) -> AsyncIterator[House]:
    async with running(Settings(home=home, project="demo", **settings), ADDRESS) as (services, key_file):
        yield House(services, key_file)
