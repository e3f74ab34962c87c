"""Service account methods: create, list, disable, enable and delete accounts and keys.

`account_store` stores them; this module checks the caller's rights.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from sarto.control.access import account_store, authorization, policies
from sarto.control.access.principal import Principal
from sarto.control.context import AnyRow
from sarto.errors import FailedPrecondition, NotFound
from sarto.storage.database.database import Database, report
from sarto.storage.database.tables import api_key, binding, service_account, service_account_key

ACCOUNTS, KEYS = "iam.serviceAccounts", "iam.serviceAccountKeys"


def create(database: Database, principal: Principal, project: str, account_id: str, display_name: str) -> AnyRow:
    """Create an account without rights. Raises InvalidArgument, AlreadyExists."""
    owner = authorization.require(database, principal, f"{ACCOUNTS}.create", project)
    with database.transaction() as connection:
        now = database.now(connection)
        account = account_store.create(connection, owner, account_id, "", now)
        report(
            connection, f"{ACCOUNTS}.create", owner.number, f"projects/{owner.number}/serviceAccounts/{account.email}"
        )
        same = service_account.c.email == account.email
        if display_name:
            connection.execute(service_account.update().where(same).values(display_name=display_name[:100]))
        row = account_row(connection, owner.number, account.email)
    database.rights_changes += 1
    return row


def list_accounts(database: Database, principal: Principal, project: str) -> list[AnyRow]:
    """Accounts of a project, oldest first."""
    number = authorization.require(database, principal, f"{ACCOUNTS}.list", project).number
    query = sa.select(service_account).where(service_account.c.project == number)
    with database.reading() as connection:
        return list(connection.execute(query.order_by(service_account.c.create_time, service_account.c.email)))


def get(database: Database, principal: Principal, project: str, email: str) -> AnyRow:
    return find(database, _require(database, principal, f"{ACCOUNTS}.get", project, email), email)


def find(database: Database, project: str, email: str) -> AnyRow:
    """The account in the project with this number. Raises NotFound."""
    with database.reading() as connection:
        return account_row(connection, project, email)


def switch(database: Database, principal: Principal, project: str, email: str, disabled: bool) -> None:
    """Disable or enable an account. Disabling revokes its tokens; jobs that run as it fail at their next check."""
    verb = "disable" if disabled else "enable"
    number = _require(database, principal, f"{ACCOUNTS}.{verb}", project, email)
    with database.transaction() as connection:
        row = account_row(connection, number, email)
        if disabled:
            _check_not_last(connection, row)
        connection.execute(
            service_account.update().where(service_account.c.email == row.email).values(disabled=disabled)
        )
    database.rights_changes += 1


def delete(database: Database, principal: Principal, project: str, email: str) -> None:
    """Delete an account with its keys, its rights, and its policy."""
    number = _require(database, principal, f"{ACCOUNTS}.delete", project, email)
    with database.transaction() as connection:
        row = account_row(connection, number, email)
        _check_not_last(connection, row)
        for keys in (service_account_key, api_key):
            connection.execute(keys.delete().where(keys.c.email == email))
        connection.execute(binding.delete().where(binding.c.member == f"serviceAccount:{email}"))
        policies.forget(connection, number, f"serviceAccounts/{email}")
        connection.execute(service_account.delete().where(service_account.c.email == email))
    database.rights_changes += 1


def create_key(
    database: Database,
    principal: Principal,
    project: str,
    email: str,
    after: datetime | None,
    before: datetime | None,
    most_days: float = 0.0,
) -> tuple[AnyRow, dict[str, Any]]:
    """Create a key; returns it with its key file, which is not stored. It is valid between the two times, if given, and
    for `most_days` from now at most, unless that is 0."""
    owner = authorization.require(database, principal, f"{KEYS}.create", project, f"serviceAccounts/{email}")
    pair = account_store.new_pair()
    with database.transaction() as connection:
        row = account_row(connection, owner.number, email)
        now = database.now(connection)
        start, end = (moment.timestamp() if moment else None for moment in (after, before))
        end = account_store.check_end("valid_before_time", now, start, end, most_days)
        account_store.check_room(connection, email)
        account = account_store.ServiceAccount(row.email, row.project, row.unique_id, row.disabled)
        record = account_store.store_key(connection, account, owner.id, now, pair, start, end)
        name = f"projects/{owner.number}/serviceAccounts/{email}/keys/{record['private_key_id']}"
        report(connection, f"{KEYS}.create", owner.number, name)
        key = _key(connection, email, record["private_key_id"])
    database.rights_changes += 1
    return key, record


def list_keys(database: Database, principal: Principal, project: str, email: str) -> list[AnyRow]:
    number = _require(database, principal, f"{KEYS}.list", project, email)
    with database.reading() as connection:
        account_row(connection, number, email)
        return _keys(connection, email)


def get_key(database: Database, principal: Principal, project: str, email: str, key: str) -> AnyRow:
    number = _require(database, principal, f"{KEYS}.get", project, email)
    with database.reading() as connection:
        account_row(connection, number, email)
        return _key(connection, email, key)


def switch_key(database: Database, principal: Principal, project: str, email: str, key: str, disabled: bool) -> None:
    number = _require(database, principal, f"{KEYS}.{'disable' if disabled else 'enable'}", project, email)
    with database.transaction() as connection:
        account_row(connection, number, email)
        _key(connection, email, key)
        connection.execute(
            service_account_key.update().where(service_account_key.c.id == key).values(disabled=disabled)
        )
    database.rights_changes += 1


def delete_key(database: Database, principal: Principal, project: str, email: str, key: str) -> None:
    number = _require(database, principal, f"{KEYS}.delete", project, email)
    with database.transaction() as connection:
        account_row(connection, number, email)
        _key(connection, email, key)
        connection.execute(service_account_key.delete().where(service_account_key.c.id == key))
    database.rights_changes += 1


def _require(database: Database, principal: Principal, permission: str, project: str, email: str) -> str:
    return authorization.require(database, principal, permission, project, f"serviceAccounts/{email}").number


def account_row(connection: Connection, project: str, email: str) -> AnyRow:
    """The account in the project with this number. Raises NotFound."""
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
    """Check that the service keeps an administrator that can sign in."""
    enabled = (
        sa.select(service_account.c.email)
        .join(binding, binding.c.member == sa.literal("serviceAccount:") + service_account.c.email)
        .where(binding.c.resource == authorization.SERVICE, ~service_account.c.disabled)
    )
    administrators = set(connection.execute(enabled).scalars())
    if administrators == {row.email}:
        raise FailedPrecondition(f"{row.email} is the service's only administrator and cannot be removed.")
