"""Policies: the bindings on one resource, read, replaced as a whole with an etag, and tested.

A member is a service account, a user, or a subject of a provider. `allUsers` and the like are refused.
"""

from __future__ import annotations

import hashlib
import re
from base64 import b64encode
from collections.abc import Iterable
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from sarto.control.access import authorization, projects
from sarto.control.access.principal import Principal
from sarto.control.access.projects import AGENT_DOMAIN
from sarto.control.access.roles import ROLES, SARTO_ADMIN
from sarto.errors import Aborted, FailedPrecondition, FieldViolation, InvalidArgument, NotFound, Unimplemented
from sarto.storage.database.database import Database, Lock
from sarto.storage.database.tables import binding, bucket, crypto_key, endpoint, key_ring, model, service_account
from sarto.storage.database.tables import project as project_table

MEMBER = re.compile(
    r"(user|serviceAccount):[^@\s:/]{1,64}@[A-Za-z0-9.-]{1,190}|principal://[^\s/]\S{0,190}/subject/\S{1,100}"
)
MOST_MEMBERS = 1500
PERMISSION = re.compile(r"[a-zA-Z]+\.[a-zA-Z]+\.[a-zA-Z]+")
Bindings = dict[str, list[str]]
"""Role → members, both sorted."""


@dataclass(frozen=True)
class Target:
    """The resource of a policy: `on` is its name under the project (empty: the project itself); `prefix` begins its
    permissions."""

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
        bindings = _read(connection, target)
    return bindings, etag(bindings)


def set_policy(
    database: Database, principal: Principal, target: Target, bindings: Iterable[tuple[str, Iterable[str]]], seen: str
) -> tuple[Bindings, str]:
    """Replace the policy. `seen` is the etag of the last read, empty to replace any. Raises Aborted when another caller
    wrote meanwhile, InvalidArgument with every wrong role and member."""
    target = _open(database, principal, f"{target.prefix}.setIamPolicy", target)
    pairs = sorted({(role, member) for role, members in bindings for member in members})
    _check_words(bindings)
    if pairs and authorization.is_of_service(database, target.project, target.on):
        raise FailedPrecondition(
            "policy.bindings: only roles on the service give rights on its own accounts. Bindings here would have no"
            " effect; leave them out."
        )
    with database.transaction() as connection:
        database.lock(connection, Lock.POLICY, target.key)
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
    """The permissions among these that the caller has; none on a resource that it may not see. Raises
    InvalidArgument."""
    permissions = list(permissions)
    wrong = [one for one in permissions if not PERMISSION.fullmatch(one)]
    if wrong:
        raise InvalidArgument.of(
            FieldViolation("permissions", f'"{one}" is not a permission such as aiplatform.models.get.')
            for one in wrong
        )
    project = projects.find(database, target.project)
    if project is None:
        return []
    return [one for one in permissions if authorization.allowed(database, principal, one, project.number, target.on)]


def etag(bindings: Bindings) -> str:
    digest = hashlib.sha256(repr(sorted(bindings.items())).encode()).digest()
    return b64encode(digest[:9]).decode()


def forget(connection: Connection, project: str, on: str) -> None:
    """Delete the policy of a deleted resource, so that a later one of its name does not inherit it."""
    connection.execute(binding.delete().where(binding.c.resource == f"projects/{project}/{on}"))


def _open(database: Database, principal: Principal, permission: str, target: Target) -> Target:
    owner = authorization.require(database, principal, permission, target.project, target.on)
    return Target(target.prefix, owner.number, target.on)


def _read(connection: Connection, target: Target) -> Bindings:
    query = sa.select(binding).where(binding.c.resource == target.key).order_by(binding.c.role, binding.c.member)
    bindings: Bindings = {}
    for row in connection.execute(query):
        bindings.setdefault(row.role, []).append(row.member)
    return bindings


def _check_words(bindings: Iterable[tuple[str, Iterable[str]]]) -> None:
    faults: list[FieldViolation] = []
    for index, (role, members) in enumerate(bindings):
        at, members = f"policy.bindings[{index}]", list(members)
        if role not in ROLES:
            faults.append(
                FieldViolation(f"{at}.role", f'There is no role "{role}"; one of {", ".join(sorted(ROLES))}.')
            )
        if role == SARTO_ADMIN:
            faults.append(
                FieldViolation(f"{at}.role", f"{role} is for the whole service; give roles/owner in a project.")
            )
        if len(members) > MOST_MEMBERS:
            faults.append(FieldViolation(f"{at}.members", f"At most {MOST_MEMBERS} members are allowed."))
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
    """Check that accounts exist; else the rights would go to whoever creates the account later."""
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
