"""What callers do with service accounts and their keys: make, list, switch off and on, delete.

The words of an account live in `service_accounts`; here is who may say them.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from sarto.control import iam, policies, service_accounts
from sarto.control.auth import Principal
from sarto.control.context import AnyRow
from sarto.errors import FailedPrecondition, InvalidArgument, NotFound
from sarto.storage.database import Database
from sarto.storage.tables import binding, service_account, service_account_key

ACCOUNTS, KEYS = "iam.serviceAccounts", "iam.serviceAccountKeys"
MOST_KEYS = 10


def create(database: Database, principal: Principal, project: str, account_id: str, display_name: str) -> AnyRow:
    """Without any right. Raises InvalidArgument, AlreadyExists."""
    found = iam.require(database, principal, f"{ACCOUNTS}.create", project)
    with database.transaction() as connection:
        now = database.now(connection)
        made = service_accounts.create(connection, found, account_id, "", now)
        same = service_account.c.email == made.email
        if display_name:
            connection.execute(service_account.update().where(same).values(display_name=display_name[:100]))
        row = _account(connection, found.number, made.email)
    database.rights_changes += 1
    return row


def list_(database: Database, principal: Principal, project: str) -> list[AnyRow]:
    """Oldest first."""
    number = iam.require(database, principal, f"{ACCOUNTS}.list", project).number
    query = sa.select(service_account).where(service_account.c.project == number)
    with database.reading() as connection:
        return list(connection.execute(query.order_by(service_account.c.create_time, service_account.c.email)))


def get(database: Database, principal: Principal, project: str, email: str) -> AnyRow:
    return find(database, _require(database, principal, f"{ACCOUNTS}.get", project, email), email)


def find(database: Database, project: str, email: str) -> AnyRow:
    """The account in the project with this number. Raises NotFound."""
    with database.reading() as connection:
        return _account(connection, project, email)


def switch(database: Database, principal: Principal, project: str, email: str, disabled: bool) -> None:
    """Disable or enable: a disabled account's tokens end, and jobs that run as it fail at their next check."""
    verb = "disable" if disabled else "enable"
    number = _require(database, principal, f"{ACCOUNTS}.{verb}", project, email)
    with database.transaction() as connection:
        row = _account(connection, number, email)
        if disabled:
            _check_not_last(connection, row)
        connection.execute(
            service_account.update().where(service_account.c.email == row.email).values(disabled=disabled)
        )
    database.rights_changes += 1


def delete(database: Database, principal: Principal, project: str, email: str) -> None:
    """With its keys, its rights, and the policy on it."""
    number = _require(database, principal, f"{ACCOUNTS}.delete", project, email)
    with database.transaction() as connection:
        row = _account(connection, number, email)
        _check_not_last(connection, row)
        connection.execute(service_account_key.delete().where(service_account_key.c.email == email))
        connection.execute(binding.delete().where(binding.c.member == f"serviceAccount:{email}"))
        policies.forget(connection, number, f"serviceAccounts/{email}")
        connection.execute(service_account.delete().where(service_account.c.email == email))
    database.rights_changes += 1


def create_key(
    database: Database, principal: Principal, project: str, email: str, after: datetime | None, before: datetime | None
) -> tuple[AnyRow, dict[str, Any]]:
    """A new key and its key file, which exists nowhere else. It is good between the two times, where given."""
    found = iam.require(database, principal, f"{KEYS}.create", project, f"serviceAccounts/{email}")
    pair = service_accounts.new_pair()
    with database.transaction() as connection:
        row = _account(connection, found.number, email)
        now = database.now(connection)
        start, end = (moment.timestamp() if moment else None for moment in (after, before))
        if end is not None and end <= (start or now):
            raise InvalidArgument.field(
                "valid_before_time", "The key would be over before it begins; name a later time."
            )
        if len(_keys(connection, email)) >= MOST_KEYS:
            raise FailedPrecondition(f"{email} has {MOST_KEYS} keys; delete one it no longer needs first.")
        account = service_accounts.ServiceAccount(row.email, row.project, row.unique_id, row.disabled)
        made = service_accounts.store_key(connection, account, found.id, now, pair, start, end)
        key = _key(connection, email, made["private_key_id"])
    database.rights_changes += 1
    return key, made


def list_keys(database: Database, principal: Principal, project: str, email: str) -> list[AnyRow]:
    number = _require(database, principal, f"{KEYS}.list", project, email)
    with database.reading() as connection:
        _account(connection, number, email)
        return _keys(connection, email)


def get_key(database: Database, principal: Principal, project: str, email: str, key: str) -> AnyRow:
    number = _require(database, principal, f"{KEYS}.get", project, email)
    with database.reading() as connection:
        _account(connection, number, email)
        return _key(connection, email, key)


def switch_key(database: Database, principal: Principal, project: str, email: str, key: str, disabled: bool) -> None:
    number = _require(database, principal, f"{KEYS}.{'disable' if disabled else 'enable'}", project, email)
    with database.transaction() as connection:
        _account(connection, number, email)
        _key(connection, email, key)
        connection.execute(
            service_account_key.update().where(service_account_key.c.id == key).values(disabled=disabled)
        )
    database.rights_changes += 1


def delete_key(database: Database, principal: Principal, project: str, email: str, key: str) -> None:
    number = _require(database, principal, f"{KEYS}.delete", project, email)
    with database.transaction() as connection:
        _account(connection, number, email)
        _key(connection, email, key)
        connection.execute(service_account_key.delete().where(service_account_key.c.id == key))
    database.rights_changes += 1


def _require(database: Database, principal: Principal, permission: str, project: str, email: str) -> str:
    return iam.require(database, principal, permission, project, f"serviceAccounts/{email}").number


def _account(connection: Connection, project: str, email: str) -> AnyRow:
    query = sa.select(service_account).where(service_account.c.email == email, service_account.c.project == project)
    row = connection.execute(query).first()
    if row is None:
        raise NotFound(f"Service account {email} does not exist.")
    return row


def _keys(connection: Connection, email: str) -> list[AnyRow]:
    query = sa.select(service_account_key).where(service_account_key.c.email == email)
    return list(connection.execute(query.order_by(service_account_key.c.create_time, service_account_key.c.id)))


def _key(connection: Connection, email: str, key: str) -> AnyRow:
    for row in _keys(connection, email):
        if row.id == key:
            return row
    raise NotFound(f"Service account key {key} of {email} does not exist.")


def _check_not_last(connection: Connection, row: AnyRow) -> None:
    """The service keeps an administrator that can sign in."""
    enabled = (
        sa.select(service_account.c.email)
        .join(binding, binding.c.member == sa.literal("serviceAccount:") + service_account.c.email)
        .where(binding.c.resource == iam.SERVICE, ~service_account.c.disabled)
    )
    administrators = set(connection.execute(enabled).scalars())
    if administrators == {row.email}:
        raise FailedPrecondition(f"{row.email} is the service's only administrator; it stays.")
