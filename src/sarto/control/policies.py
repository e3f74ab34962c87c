"""Policies: the bindings on one resource, read, replaced as a whole under an etag, and asked about.

A member is an account, a user, or a subject of a provider; everybody at once is nobody's member here. Used by the
doors of every resource that has a policy.
"""

from __future__ import annotations

import hashlib
import re
from base64 import b64encode
from collections.abc import Iterable
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from sarto.control import iam, projects
from sarto.control.auth import Principal
from sarto.control.projects import AGENT_DOMAIN
from sarto.control.roles import ROLES, SARTO_ADMIN
from sarto.errors import Aborted, FieldViolation, InvalidArgument, NotFound, Unimplemented
from sarto.storage.database import Database
from sarto.storage.tables import binding, bucket, crypto_key, endpoint, key_ring, model, service_account
from sarto.storage.tables import project as project_table

MEMBER = re.compile(
    r"(user|serviceAccount):[^@\s:/]{1,64}@[A-Za-z0-9.-]{1,190}|principal://[^\s/]\S{0,190}/subject/\S{1,100}"
)
MOST_MEMBERS = 1500
PERMISSION = re.compile(r"[a-zA-Z]+\.[a-zA-Z]+\.[a-zA-Z]+")
Bindings = dict[str, list[str]]
"""Role → members, both sorted."""


@dataclass(frozen=True)
class Target:
    """What a policy is on: `on` lies under the project (empty: the project itself); `prefix` begins its permissions."""

    prefix: str
    project: str
    on: str = ""

    @property
    def key(self) -> str:
        return f"projects/{self.project}" + (f"/{self.on}" if self.on else "")


def get(database: Database, principal: Principal, target: Target) -> tuple[Bindings, str]:
    """Bindings and etag. Raises PermissionDenied, NotFound."""
    target = _open(database, principal, f"{target.prefix}.getIamPolicy", target)
    with database.reading() as connection:
        _check_exists(connection, target)
        found = _read(connection, target)
    return found, etag(found)


def set_(
    database: Database, principal: Principal, target: Target, wanted: Iterable[tuple[str, Iterable[str]]], seen: str
) -> tuple[Bindings, str]:
    """Replace the policy. `seen` is the etag it was read with, empty to replace whatever there is. Raises Aborted when
    someone else wrote meanwhile, InvalidArgument naming every wrong role and member."""
    target = _open(database, principal, f"{target.prefix}.setIamPolicy", target)
    pairs = sorted({(role, member) for role, members in wanted for member in members})
    _check_words(wanted)
    with database.transaction() as connection:
        if not database.is_sqlite:
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(sa.func.hashtext(target.key))))
        _check_exists(connection, target)
        if seen and seen != etag(_read(connection, target)):
            raise Aborted(
                "There were concurrent policy changes. Please retry the whole read-modify-write with exponential"
                " backoff: read the policy again, change that, and send its etag."
            )
        _check_accounts(connection, pairs)
        connection.execute(binding.delete().where(binding.c.resource == target.key))
        if pairs:
            rows = [{"resource": target.key, "role": role, "member": member} for role, member in pairs]
            connection.execute(binding.insert(), rows)
        now = _read(connection, target)
    database.rights_changes += 1
    return now, etag(now)


def test(database: Database, principal: Principal, target: Target, permissions: Iterable[str]) -> list[str]:
    """Those of the permissions that the caller holds; none on what it may not know. Raises InvalidArgument."""
    permissions = list(permissions)
    wrong = [one for one in permissions if not PERMISSION.fullmatch(one)]
    if wrong:
        raise InvalidArgument.of(
            FieldViolation("permissions", f'"{one}" is not a permission such as aiplatform.models.get') for one in wrong
        )
    found = projects.find(database, target.project)
    if found is None:
        return []
    return [one for one in permissions if iam.allowed(database, principal, one, found.number, target.on)]


def etag(bindings: Bindings) -> str:
    digest = hashlib.sha256(repr(sorted(bindings.items())).encode()).digest()
    return b64encode(digest[:9]).decode()


def forget(connection: Connection, project: str, on: str) -> None:
    """Drop the policy of a resource that is deleted, so that a later one of its name does not inherit it."""
    connection.execute(binding.delete().where(binding.c.resource == f"projects/{project}/{on}"))


def _open(database: Database, principal: Principal, permission: str, target: Target) -> Target:
    found = iam.require(database, principal, permission, target.project, target.on)
    return Target(target.prefix, found.number, target.on)


def _read(connection: Connection, target: Target) -> Bindings:
    query = sa.select(binding).where(binding.c.resource == target.key).order_by(binding.c.role, binding.c.member)
    found: Bindings = {}
    for row in connection.execute(query):
        found.setdefault(row.role, []).append(row.member)
    return found


def _check_words(wanted: Iterable[tuple[str, Iterable[str]]]) -> None:
    faults: list[FieldViolation] = []
    for index, (role, members) in enumerate(wanted):
        at, members = f"policy.bindings[{index}]", list(members)
        if role not in ROLES:
            faults.append(FieldViolation(f"{at}.role", f'There is no role "{role}"; one of {", ".join(sorted(ROLES))}'))
        if role == SARTO_ADMIN:
            faults.append(
                FieldViolation(f"{at}.role", f"{role} is for the whole service; give roles/owner in a project")
            )
        if len(members) > MOST_MEMBERS:
            faults.append(FieldViolation(f"{at}.members", f"at most {MOST_MEMBERS} members are allowed"))
        faults += [FieldViolation(f"{at}.members", fault) for one in members if (fault := _member_fault(one))]
    if faults:
        raise InvalidArgument.of(faults)


def _member_fault(member: str) -> str:
    if member in ("allUsers", "allAuthenticatedUsers"):
        return f'"{member}" is refused: rights are given to somebody, never to everybody; name accounts and users'
    if MEMBER.fullmatch(member):
        is_mixed = member.startswith("user:") and member != member.lower()
        return f'"{member}": write the address of a user in lower case' if is_mixed else ""
    if member.partition(":")[0] in ("group", "domain", "principalSet", "deleted"):
        return f'"{member}" is refused: groups and domains are not known here; name their users'
    return f'"{member}" is not user:EMAIL, serviceAccount:EMAIL or principal://ISSUER/subject/SUBJECT'


def _check_accounts(connection: Connection, pairs: Iterable[tuple[str, str]]) -> None:
    """An account must exist before it gets a right, or whoever makes it later would have it."""
    for email in sorted({member.partition(":")[2] for _, member in pairs if member.startswith("serviceAccount:")}):
        if email.endswith(f"@{AGENT_DOMAIN}"):
            number = email.removeprefix("service-").partition("@")[0]
            known = sa.select(project_table.c.id).where(project_table.c.number == number)
        else:
            known = sa.select(service_account.c.email).where(service_account.c.email == email)
        if connection.execute(known).first() is None:
            raise InvalidArgument(f"Service account {email} does not exist.")


def _check_exists(connection: Connection, target: Target) -> None:
    """Raises NotFound."""
    parts = target.on.split("/")
    project = target.project
    if parts[0] == "buckets":
        query = sa.select(bucket.c.name).where(bucket.c.name == parts[1], bucket.c.project == project)
    elif parts[0] == "serviceAccounts":
        query = sa.select(service_account.c.email).where(
            service_account.c.email == parts[1], service_account.c.project == project
        )
    elif len(parts) == 4 and parts[2] in ("models", "endpoints"):
        table = model if parts[2] == "models" else endpoint
        query = sa.select(table.c.id).where(
            table.c.project == project, table.c.id == parts[3], table.c.location == parts[1]
        )
    elif len(parts) >= 4 and parts[2] == "keyRings":
        ring = (key_ring.c.project == project, key_ring.c.location == parts[1], key_ring.c.id == parts[3])
        query = sa.select(key_ring.c.id).where(*ring)
        if len(parts) == 6:
            key = (crypto_key.c.project == project, crypto_key.c.location == parts[1], crypto_key.c.ring == parts[3])
            query = sa.select(crypto_key.c.id).where(*key, crypto_key.c.id == parts[5])
    else:
        return
    if connection.execute(query).first() is None:
        raise NotFound(f"projects/{project}/{target.on} is not found.")


def refuse_condition(index: int) -> Unimplemented:
    return Unimplemented(f"policy.bindings[{index}].condition: conditions are not supported; leave it out.")
