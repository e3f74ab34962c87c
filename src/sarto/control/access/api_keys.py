"""API keys: bearers of a service account that end when they are revoked or expire. They have the account's rights, and
name the project of requests that name none.

The secret is 256 random bits, so its SHA-256 is stored without salt. Whoever may create keys of an account may create
its API keys.
"""

from __future__ import annotations

import hashlib
import math
import secrets
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa

from sarto.control.access import account_store, authorization, projects, service_accounts
from sarto.control.access.principal import Principal
from sarto.control.context import AnyRow
from sarto.errors import FailedPrecondition, InvalidArgument, NotFound
from sarto.storage.database.database import Database, report
from sarto.storage.database.tables import api_key, service_account

PREFIX = "sk-sarto-"
KEYS = service_accounts.KEYS
NAME_CHARACTERS = 100


@dataclass(frozen=True)
class FoundKey:
    """The account and the project of a valid key; `expiry` in seconds since 1970, infinite without an end."""

    account: account_store.ServiceAccount
    project: str
    expiry: float


def create(
    database: Database,
    principal: Principal,
    project: str,
    email: str,
    key_project: str,
    display_name: str,
    until: datetime | None,
    most_days: float,
) -> tuple[AnyRow, str]:
    """Create a key of the account for `key_project` (default: the account's); returns its row and the bearer, which is
    not stored. It lives until the given time, and for `most_days` at most unless that is 0."""
    owner = authorization.require(database, principal, f"{KEYS}.create", project, f"serviceAccounts/{email}")
    bound = _project_of(database, principal, owner.number, key_project)
    if len(display_name) > NAME_CHARACTERS or not display_name.isprintable():
        raise InvalidArgument.field("display_name", f"At most {NAME_CHARACTERS} printable characters are allowed.")
    bearer = PREFIX + secrets.token_urlsafe(32)
    key_id = secrets.token_hex(8)
    with database.transaction() as connection:
        service_accounts.account_row(connection, owner.number, email)
        now = database.now(connection)
        end = until.timestamp() if until else None
        end = account_store.check_end("expire_time", now, None, end, most_days)
        of_account = sa.select(sa.func.count()).where(api_key.c.email == email)
        if connection.execute(of_account).scalar_one() >= account_store.MOST_KEYS:
            raise FailedPrecondition(f"{email} has {account_store.MOST_KEYS} API keys; revoke one first.")
        connection.execute(
            api_key.insert().values(
                id=key_id,
                email=email,
                project=bound,
                digest=_digest(bearer),
                display_name=display_name,
                create_time=now,
                expire_time=end,
            )
        )
        name = f"projects/{owner.number}/serviceAccounts/{email}/apiKeys/{key_id}"
        report(connection, f"{KEYS}.create", owner.number, name)
        row = connection.execute(sa.select(api_key).where(api_key.c.id == key_id)).one()
    database.rights_changes += 1
    return row, bearer


def list_keys(database: Database, principal: Principal, project: str, email: str) -> list[AnyRow]:
    """The keys of an account, oldest first, without their secrets."""
    owner = authorization.require(database, principal, f"{KEYS}.list", project, f"serviceAccounts/{email}")
    query = sa.select(api_key).where(api_key.c.email == email).order_by(api_key.c.create_time, api_key.c.id)
    with database.reading() as connection:
        service_accounts.account_row(connection, owner.number, email)
        return list(connection.execute(query))


def revoke(database: Database, principal: Principal, project: str, email: str, key: str) -> None:
    """Delete a key. This server refuses it at once, another one of the same database within a second."""
    owner = authorization.require(
        database, principal, f"{KEYS}.delete", project, f"serviceAccounts/{email}", f"apiKeys/{key}"
    )
    with database.transaction() as connection:
        service_accounts.account_row(connection, owner.number, email)
        same = (api_key.c.email == email) & (api_key.c.id == key)
        if connection.execute(api_key.delete().where(same)).rowcount != 1:
            raise NotFound(f"API key {key} of {email} does not exist.")
    database.rights_changes += 1


def find(database: Database, bearer: str) -> FoundKey | None:
    """The key of a bearer; None if it is unknown or expired, or its account is disabled."""
    with database.reading() as connection:
        row = connection.execute(_FIND, {"digest": _digest(bearer)}).first()
        if row is None or (row.expire_time is not None and database.now(connection) >= row.expire_time):
            return None
    account = account_store.ServiceAccount(row.email, row.project, row.unique_id, False)
    return FoundKey(account, row.key_project, math.inf if row.expire_time is None else row.expire_time)


def _project_of(database: Database, principal: Principal, owner: str, named: str) -> str:
    """The number of the project that a key names: the account's, or another that the caller sees. Raises
    PermissionDenied."""
    if named:
        return authorization.require(database, principal, "resourcemanager.projects.get", named).number
    if owner == projects.SYSTEM.number:
        raise InvalidArgument.field("project", "The account is of the service itself: name the project of the key.")
    return owner


def _digest(bearer: str) -> str:
    return hashlib.sha256(bearer.encode("utf-8", "surrogatepass")).hexdigest()


_FIND = (
    sa.select(api_key.c.expire_time, api_key.c.project.label("key_project"), service_account)
    .join_from(api_key, service_account, api_key.c.email == service_account.c.email)
    .where(api_key.c.digest == sa.bindparam("digest"), ~service_account.c.disabled)
)
"""Built once, since every verification of a key runs it."""
