"""Service accounts and their keys: RSA 2048, handed out once as a key file in Google's format; only public halves stay.

`open_home` gives a fresh home its project, administrator and key file. Used by the assembly, and by `auth` to look up.
"""

from __future__ import annotations

import json
import os
import re
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from sqlalchemy.engine import Connection

from sarto.control import projects
from sarto.control.roles import SARTO_ADMIN
from sarto.errors import AlreadyExists, FailedPrecondition, InvalidArgument
from sarto.storage import tables
from sarto.storage.database import Database

ACCOUNT_ID = re.compile(r"[a-z][a-z0-9-]{4,28}[a-z0-9]")
ADMIN = "sarto-admin"


@dataclass(frozen=True)
class ServiceAccount:
    email: str
    project: str
    """Project number."""
    unique_id: str
    disabled: bool


@dataclass(frozen=True)
class AccountKey:
    """The public half of a key and its account; `is_active` is false for a disabled or expired one of either."""

    id: str
    public_key: str
    account: ServiceAccount
    is_active: bool


def create(connection: Connection, project: projects.Project, account_id: str, role: str, now: float) -> ServiceAccount:
    """A new account `account_id@PROJECT.iam.gserviceaccount.com`, with `role` in its project unless that is empty;
    the administrator's role holds for the service. Raises InvalidArgument and AlreadyExists."""
    if not ACCOUNT_ID.fullmatch(account_id):
        raise InvalidArgument.field("account_id", f'"{account_id}": 6 to 30 lower case letters, digits and hyphens')
    email = f"{account_id}@{project.id}.iam.gserviceaccount.com"
    table = tables.service_account
    if connection.execute(sa.select(table.c.email).where(table.c.email == email)).first():
        raise AlreadyExists(f"Service account {email} already exists.")
    unique_id = str(10**20 + secrets.randbelow(9 * 10**20))
    values = {"email": email, "project": project.number, "unique_id": unique_id, "display_name": account_id}
    connection.execute(table.insert().values(**values, disabled=False, create_time=now))
    if role:
        resource = "service" if role == SARTO_ADMIN else f"projects/{project.number}"
        given = {"resource": resource, "role": role, "member": f"serviceAccount:{email}"}
        connection.execute(tables.binding.insert().values(**given))
    return ServiceAccount(email, project.number, unique_id, False)


def create_key(connection: Connection, account: ServiceAccount, project_id: str, now: float) -> dict[str, Any]:
    """A new key without an end, as the JSON object of a Google key file."""
    return store_key(connection, account, project_id, now, new_pair())


def new_pair() -> tuple[str, str]:
    """Private and public half, as PEM. Slow: make it outside a transaction where others wait."""
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
    """The key as the JSON object of a Google key file, less its addresses; the private half is kept nowhere else."""
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
    return AccountKey(row.id, row.public_key, account, not (row.key_disabled or row.disabled or expired or early))


def find_enabled(database: Database, unique_id: str) -> ServiceAccount | None:
    """The account with this id, which no later account of its name has; None when it is gone or disabled."""
    table = tables.service_account
    with database.reading() as connection:
        row = connection.execute(sa.select(table).where(table.c.unique_id == unique_id, ~table.c.disabled)).first()
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
    """Replace a file at once and whole, readable by its owner alone (mode 600, folder 700)."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def open_home(database: Database, home: Path, project_id: str, address: str) -> Path:
    """Make sure the home has its project, an administrator and `credentials/admin.json` for this address.

    Returns the key file. Raises FailedPrecondition when the file there is not a key file.
    """
    path = home / "credentials" / "admin.json"
    known = _read_key(path)
    with database.transaction() as connection:
        now = database.now(connection)
        project = projects.find(database, project_id) or projects.insert(connection, project_id, now)
        account = _administrator(connection) or create(connection, project, ADMIN, SARTO_ADMIN, now)
        if known is None or not _has_key(connection, known["private_key_id"]):
            known = create_key(connection, account, project.id, now)
    wanted = (json.dumps(key_file(known, address), indent=2) + "\n").encode()
    if not path.exists() or path.read_bytes() != wanted:
        write_private(path, wanted)
    return path


def read_email(key_file_path: Path) -> str:
    """The account of a key file that `open_home` gave."""
    return str(json.loads(key_file_path.read_bytes())["client_email"])


def _administrator(connection: Connection) -> ServiceAccount | None:
    table = tables.service_account
    query = sa.select(table).where(table.c.display_name == ADMIN).order_by(table.c.create_time).limit(1)
    row = connection.execute(query).first()
    return ServiceAccount(row.email, row.project, row.unique_id, row.disabled) if row else None


def _has_key(connection: Connection, key_id: str) -> bool:
    table = tables.service_account_key
    return connection.execute(sa.select(table.c.id).where(table.c.id == key_id)).first() is not None


def _read_key(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        key = json.loads(path.read_bytes())
        if isinstance(key, dict) and {"private_key_id", "private_key", "client_email"} <= key.keys():
            return key
    except ValueError:
        pass
    raise FailedPrecondition(f"{path} is not a service account key file; move it away and start again for a new one")


_ACCOUNTS, _KEYS = tables.service_account, tables.service_account_key
_KEY = (
    sa.select(
        _KEYS.c.id,
        _KEYS.c.public_key,
        _KEYS.c.expire_time,
        _KEYS.c.valid_after,
        _KEYS.c.disabled.label("key_disabled"),
        _ACCOUNTS,
    )
    .join_from(_KEYS, _ACCOUNTS, _KEYS.c.email == _ACCOUNTS.c.email)
    .where(_KEYS.c.id == sa.bindparam("id"))
)
"""A key with its account; made once, since every token that is verified anew asks for it."""
