"""Service accounts and their keys: RSA 2048, returned once as a key file in Google's format. Only public keys are
stored.

`open_home` creates the project, administrator and key file of a fresh home. `renew_administrator` replaces a lost key.
"""

from __future__ import annotations

import json
import logging
import re
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from sqlalchemy.engine import Connection

from sarto.control.access import projects
from sarto.control.access.roles import SARTO_ADMIN
from sarto.errors import AlreadyExists, FailedPrecondition, InvalidArgument
from sarto.names import SYSTEM_PROJECT
from sarto.storage.database import tables
from sarto.storage.database.database import Database, report
from sarto.system.files import write_whole

logger = logging.getLogger(__name__)

RENEW = "sarto auth new-admin-key"
"""Command that writes a new key file of the administrator."""
DAY = 86_400.0
ACCOUNT_ID = re.compile(r"[a-z][a-z0-9-]{4,28}[a-z0-9]")
ADMIN = "sarto-admin"
ADMIN_EMAIL = f"{ADMIN}@{SYSTEM_PROJECT}.iam.gserviceaccount.com"
MOST_KEYS = 10
"""Most keys of one account."""


@dataclass(frozen=True)
class ServiceAccount:
    email: str
    project: str
    """Project number."""
    unique_id: str
    disabled: bool


@dataclass(frozen=True)
class AccountKey:
    """The public half of a key and its account; `is_active` is false for a disabled or expired key or account."""

    id: str
    public_key: str
    account: ServiceAccount
    is_active: bool
    former_email: str = ""
    """The account's address in the key file, if the account was moved since."""

    @property
    def emails(self) -> frozenset[str]:
        """Addresses that an assertion under this key may have as its issuer."""
        return frozenset((self.account.email, self.former_email or self.account.email))


def create(connection: Connection, project: projects.Project, account_id: str, role: str, now: float) -> ServiceAccount:
    """Create the account `account_id@PROJECT.iam.gserviceaccount.com`, with `role` in its project unless that is empty;
    the administrator's role is on the service. Raises InvalidArgument and AlreadyExists."""
    if not ACCOUNT_ID.fullmatch(account_id):
        raise InvalidArgument.field("account_id", f'"{account_id}": 6 to 30 lower case letters, digits and hyphens.')
    email = f"{account_id}@{project.id}.iam.gserviceaccount.com"
    table = tables.service_account
    if connection.execute(sa.select(table.c.email).where(table.c.email == email)).first():
        raise AlreadyExists(f"Service account {email} already exists.")
    unique_id = str(10**20 + secrets.randbelow(9 * 10**20))
    values = {"email": email, "project": project.number, "unique_id": unique_id, "display_name": account_id}
    connection.execute(table.insert().values(**values, disabled=False, create_time=now))
    if role:
        resource = "service" if role == SARTO_ADMIN else f"projects/{project.number}"
        grant = {"resource": resource, "role": role, "member": f"serviceAccount:{email}"}
        connection.execute(tables.binding.insert().values(**grant))
    return ServiceAccount(email, project.number, unique_id, False)


def create_key(
    connection: Connection, account: ServiceAccount, project_id: str, now: float, expire_time: float | None = None
) -> dict[str, Any]:
    """Create a key; returns the JSON object of a Google key file. Without a time it does not expire."""
    return store_key(connection, account, project_id, now, new_pair(), expire_time=expire_time)


def check_room(connection: Connection, email: str) -> None:
    """Raises FailedPrecondition when the account has the largest number of keys."""
    table = tables.service_account_key
    if len(connection.execute(sa.select(table.c.id).where(table.c.email == email)).all()) >= MOST_KEYS:
        raise FailedPrecondition(f"{email} has {MOST_KEYS} keys; delete one it no longer needs first.")


def check_end(field: str, now: float, start: float | None, end: float | None, most_days: float) -> float | None:
    """When a new key ends: at `end`, or after the `most_days` that a key may live (0: no limit), which is the default.
    Raises InvalidArgument on `field`."""
    if end is not None and end <= (start or now):
        raise InvalidArgument.field(field, "The key would expire before it is valid; name a later time.")
    last = now + most_days * DAY if most_days else None
    if last is not None and end is not None and end > last:
        raise InvalidArgument.field(
            field,
            f"Keys live {most_days:g} days at most (max_key_days); name a time until"
            f" {datetime.fromtimestamp(last, UTC):%Y-%m-%dT%H:%M:%SZ}.",
        )
    return last if end is None else end


def new_pair() -> tuple[str, str]:
    """Private and public half, as PEM. Slow: call it outside transactions."""
    private = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    public = private.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return pem.decode(), public.decode()


def store_key(
    connection: Connection,
    account: ServiceAccount,
    project_id: str,
    now: float,
    pair: tuple[str, str],
    valid_after: float | None = None,
    expire_time: float | None = None,
) -> dict[str, Any]:
    """Store the public half; returns the JSON object of a Google key file without addresses. The private half is not
    stored."""
    key_id = secrets.token_hex(20)
    values = {"id": key_id, "email": account.email, "public_key": pair[1], "disabled": False, "create_time": now}
    values |= {"valid_after": valid_after, "expire_time": expire_time}
    connection.execute(tables.service_account_key.insert().values(**values))
    return {
        "type": "service_account",
        "project_id": project_id,
        "private_key_id": key_id,
        "private_key": pair[0],
        "client_email": account.email,
        "client_id": account.unique_id,
        "universe_domain": "googleapis.com",
    }


def find_key(database: Database, key_id: str) -> AccountKey | None:
    with database.reading() as connection:
        row = connection.execute(_KEY, {"id": key_id}).first()
        if row is None:
            return None
        now = database.now(connection)
        expired = row.expire_time is not None and now >= row.expire_time
        early = row.valid_after is not None and now < row.valid_after
    account = ServiceAccount(row.email, row.project, row.unique_id, row.disabled)
    is_active = not (row.key_disabled or row.disabled or expired or early)
    return AccountKey(row.id, row.public_key, account, is_active, row.former_email or "")


def find_enabled(database: Database, unique_id: str) -> ServiceAccount | None:
    """The account with this id, which is unique for all time; None when it is deleted or disabled."""
    return _find_enabled(database, tables.service_account.c.unique_id == unique_id)


def find_enabled_by_email(database: Database, email: str) -> ServiceAccount | None:
    return _find_enabled(database, tables.service_account.c.email == email)


def _find_enabled(database: Database, same: sa.ColumnElement[bool]) -> ServiceAccount | None:
    table = tables.service_account
    with database.reading() as connection:
        row = connection.execute(sa.select(table).where(same, ~table.c.disabled)).first()
    return ServiceAccount(row.email, row.project, row.unique_id, False) if row else None


def key_file(key: dict[str, Any], address: str) -> dict[str, Any]:
    """The key with the addresses of this server filled in."""
    certificates = f"{address}/oauth2/v3/certs"
    return key | {
        "auth_uri": f"{address}/auth",
        "token_uri": f"{address}/token",
        "auth_provider_x509_cert_url": certificates,
        "client_x509_cert_url": certificates,
    }


def write_private(path: Path, content: bytes) -> None:
    """Replace a file by one rename, readable only by its owner (mode 600, folder 700)."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_whole(path, content, 0o600)


def open_home(database: Database, home: Path, project_id: str, address: str, key_days: float = 0.0) -> Path | None:
    """Ensure that the home has its project and the service an administrator. A new administrator gets a key of
    `key_days` (0: no expiry) in `credentials/admin.json`. The file is updated to this address.

    Returns the key file; None if it is missing or its key was deleted, since neither is recreated automatically. Raises
    FailedPrecondition when the file is not a key file."""
    path = _key_path(home)
    known, has_project = _read_key(path), projects.find(database, project_id) is not None
    with database.transaction() as connection:
        now = database.now(connection)
        if not has_project:
            projects.insert(connection, project_id, now)
        if not administrators(connection):
            known = _new_administrator_key(connection, project_id, now, key_days)
        email = _email_of_key(connection, known["private_key_id"]) if known else None
    if known is None or email is None:
        logger.warning("no usable key of an administrator in this home", extra={"file": str(path), "make one": RENEW})
        return None
    _write_key_file(path, known | {"client_email": email}, address)
    return path


def renew_administrator(database: Database, home: Path, project_id: str, address: str, key_days: float) -> Path:
    """Write a new key of `sarto-admin` to `credentials/admin.json`; needs write access to the database. Other keys
    stay. Raises FailedPrecondition."""
    with database.transaction() as connection:
        key = _new_administrator_key(connection, project_id, database.now(connection), key_days)
    _write_key_file(_key_path(home), key, address)
    return _key_path(home)


def _new_administrator_key(connection: Connection, project_id: str, now: float, key_days: float) -> dict[str, Any]:
    """`project_id` is the default project of clients."""
    table = tables.service_account
    row = connection.execute(sa.select(table).where(table.c.email == ADMIN_EMAIL)).first()
    name = f"projects/{projects.SYSTEM.number}/serviceAccounts/{ADMIN_EMAIL}"
    if row is None:
        account = create(connection, projects.SYSTEM, ADMIN, SARTO_ADMIN, now)
        report(connection, "iam.serviceAccounts.create", projects.SYSTEM.number, name)
    else:
        account = ServiceAccount(row.email, row.project, row.unique_id, row.disabled)
    if account.disabled:
        raise FailedPrecondition(f"{ADMIN_EMAIL} is disabled; another administrator can enable it.")
    check_room(connection, ADMIN_EMAIL)
    key = create_key(connection, account, project_id, now, now + key_days * DAY if key_days else None)
    report(connection, "iam.serviceAccountKeys.create", projects.SYSTEM.number, f"{name}/keys/{key['private_key_id']}")
    return key


@dataclass(frozen=True)
class Administrator:
    """An account with a role on the service. `project` is empty for one in the service's own project; else `owners` are
    those of its project."""

    email: str
    project: str
    owners: tuple[str, ...]
    keys: int
    keys_without_end: int


def administrators(connection: Connection) -> list[Administrator]:
    table, bound, keys = tables.service_account, tables.binding, tables.service_account_key
    member = sa.literal("serviceAccount:") + table.c.email
    query = sa.select(table.c.email, table.c.project).join(bound, bound.c.member == member)
    administrators = []
    for row in connection.execute(query.where(bound.c.resource == "service").distinct().order_by(table.c.email)).all():
        is_ours = row.project == projects.SYSTEM.number
        owners = sa.select(bound.c.member).where(
            bound.c.resource == f"projects/{row.project}", bound.c.role == "roles/owner"
        )
        names = () if is_ours else tuple(connection.execute(owners.order_by(bound.c.member)).scalars())
        ends = connection.execute(sa.select(keys.c.expire_time).where(keys.c.email == row.email)).scalars().all()
        administrators.append(
            Administrator(row.email, "" if is_ours else row.project, names, len(ends), ends.count(None))
        )
    return administrators


def with_addresses_of_agents(connection: Connection) -> list[str]:
    """Accounts in projects whose ids are reserved now, created before that."""
    query = sa.select(tables.service_account.c.email)
    return [email for email in connection.execute(query).scalars() if email.endswith(f"@{projects.AGENT_DOMAIN}")]


def _email_of_key(connection: Connection, key_id: str) -> str | None:
    table = tables.service_account_key
    return connection.execute(sa.select(table.c.email).where(table.c.id == key_id)).scalar()


def _key_path(home: Path) -> Path:
    return home / "credentials" / "admin.json"


def _write_key_file(path: Path, key: dict[str, Any], address: str) -> None:
    content = (json.dumps(key_file(key, address), indent=2) + "\n").encode()
    if not path.exists() or path.read_bytes() != content:
        write_private(path, content)


def _read_key(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        key = json.loads(path.read_bytes())
        if isinstance(key, dict) and {"private_key_id", "private_key", "client_email"} <= key.keys():
            return key
    except ValueError:
        pass
    raise FailedPrecondition(f"{path} is not a service account key file; move it away and create a new one: `{RENEW}`.")


_ACCOUNTS, _KEYS = tables.service_account, tables.service_account_key
_KEY = (
    sa.select(
        _KEYS.c.id,
        _KEYS.c.public_key,
        _KEYS.c.expire_time,
        _KEYS.c.valid_after,
        _KEYS.c.former_email,
        _KEYS.c.disabled.label("key_disabled"),
        _ACCOUNTS,
    )
    .join_from(_KEYS, _ACCOUNTS, _KEYS.c.email == _ACCOUNTS.c.email)
    .where(_KEYS.c.id == sa.bindparam("id"))
)
"""A query for a key with its account; built once, since every verification of a token runs it."""
