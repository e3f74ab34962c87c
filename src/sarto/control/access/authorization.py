"""Authorisation: every control function that a handler calls begins with `require`.

A right is a binding of a role to a member on a resource. It holds for that resource and the resources under it: the
service, a project, or one bucket, account, key, model or endpoint. Another's project and a missing project have the
same response, after the same work. Accounts with a role on the service are protected: only a binding on the service
gives rights on them.
"""

from __future__ import annotations

import time
from functools import lru_cache

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from sarto.control.access import decisions, projects
from sarto.control.access.principal import Principal
from sarto.control.access.projects import Project
from sarto.control.access.roles import SARTO_ADMIN, grants
from sarto.errors import ERROR_INFO, PermissionDenied
from sarto.names import check_project
from sarto.storage.database.database import Database
from sarto.storage.database.tables import binding

SERVICE = "service"
"""The resource above all projects; its bindings hold everywhere."""

__all__ = [
    "SARTO_ADMIN",
    "SERVICE",
    "Principal",
    "allowed",
    "bind",
    "denied",
    "grants",
    "is_of_service",
    "require",
    "visible_projects",
]


def require(
    database: Database, principal: Principal, permission: str, project: str, on: str = "", about: str = ""
) -> Project:
    """The project, by id or number, in which the principal has the permission. `on` is the resource under it
    (`buckets/B`, `serviceAccounts/E`, `locations/L/models/M`), `about` a resource under that for the audit log. Raises
    PermissionDenied."""
    owner = projects.find(database, check_project(project))
    name = f"projects/{project}" + (f"/{on}" if on else "")
    is_allowed = owner is not None and allowed(database, principal, permission, owner.number, on)
    what = f"{name}/{about}" if about else name
    decisions.note(principal, permission, what, owner.number if owner else "", is_allowed)
    if owner is None or not is_allowed:
        raise denied(permission, name)
    return owner


def require_within(database: Database, principal: Principal, permission: str, project: str) -> None:
    """Check before a request is read: the principal must have the permission on anything in the project or, without a
    project, on anything at all. Raises PermissionDenied."""
    owner = projects.find(database, check_project(project)) if project else None
    held = {r for r, role in _held(database, principal.member) if grants(role, permission)}
    if project:
        resource = f"projects/{owner.number}" if owner else SERVICE
        held = {r for r in held if owner and (r in (SERVICE, resource) or r.startswith(f"{resource}/"))}
    if not held:
        name = f"projects/{project}" if project else "the service"
        decisions.note(principal, permission, name, owner.number if owner else "", is_allowed=False)
        raise denied(permission, name)


def require_everywhere(database: Database, principal: Principal, permission: str) -> None:
    """For an action outside projects, such as creating one. Raises PermissionDenied."""
    is_allowed = any(r == SERVICE and grants(role, permission) for r, role in _held(database, principal.member))
    decisions.note(principal, permission, "the service", "", is_allowed)
    if not is_allowed:
        raise denied(permission, "the service")


def require_somewhere(database: Database, principal: Principal, permission: str) -> None:
    """For a resource outside projects that all use, such as a base model by its bare name: the permission on anything
    suffices. Raises PermissionDenied."""
    is_allowed = any(grants(role, permission) for _, role in _held(database, principal.member))
    decisions.note(principal, permission, "the service", "", is_allowed)
    if not is_allowed:
        raise denied(permission, "the service")


def allowed(database: Database, principal: Principal, permission: str, project: str, on: str = "") -> bool:
    """Whether the principal has the permission in the project with this number, or on the resource under it."""
    above = {SERVICE}
    if not is_of_service(database, project, on):
        above |= {f"projects/{project}", f"projects/{project}/{on}"}
    return any(r in above and grants(role, permission) for r, role in _held(database, principal.member))


def is_of_service(database: Database, project: str, on: str = "") -> bool:
    """Whether a resource is reached only by bindings on the service. Whoever could create a token, a key or a policy of
    an account with a role on the service would have that role."""
    if project == projects.SYSTEM.number:
        return True
    kind, _, email = on.partition("/")
    held = _held(database, f"serviceAccount:{email}") if kind == "serviceAccounts" else ()
    return any(resource == SERVICE for resource, _ in held)


def visible_projects(
    database: Database, principal: Principal, permission: str = "resourcemanager.projects.get"
) -> list[Project]:
    """Every project in which the principal has the permission, by default that to see it; oldest first."""
    return [p for p in projects.all_projects(database) if allowed(database, principal, permission, p.number)]


def bind(connection: Connection, resource: str, role: str, member: str) -> None:
    """Add a binding; no change if it exists."""
    same = (binding.c.resource == resource) & (binding.c.role == role) & (binding.c.member == member)
    if connection.execute(sa.select(binding.c.role).where(same)).first() is None:
        connection.execute(binding.insert().values(resource=resource, role=role, member=member))


def denied(permission: str, resource: str) -> PermissionDenied:
    service = permission.partition(".")[0]
    detail = {
        "@type": ERROR_INFO,
        "reason": "IAM_PERMISSION_DENIED",
        "domain": f"{service}.googleapis.com",
        "metadata": {"permission": permission, "resource": resource},
    }
    return PermissionDenied(
        f"Permission '{permission}' denied on resource '//{service}.googleapis.com/{resource}' (or it may not exist).",
        [detail],
    )


def _held(database: Database, member: str) -> frozenset[tuple[str, str]]:
    """(resource, role) of every binding of a member, at most a second old; changes made by this process are effective
    at once."""
    return _read(database, member, int(time.monotonic()), database.rights_changes)


@lru_cache(maxsize=4096)
def _read(database: Database, member: str, _second: int, _changes: int) -> frozenset[tuple[str, str]]:
    with database.reading() as connection:
        rows = connection.execute(_BINDINGS, {"member": member}).all()
    return frozenset(map(tuple, rows))


_BINDINGS = sa.select(binding.c.resource, binding.c.role).where(binding.c.member == sa.bindparam("member"))
