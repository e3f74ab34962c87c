"""Who may do what: `require` is the one question, asked first by every control function that a door calls.

A right is a binding of a role to a member on a resource, and holds for what lies under it: the service, a project, or
one bucket, account, key, model or endpoint. A project is a wall: a foreign project and one that does not exist answer
alike, after the same work.
"""

from __future__ import annotations

import time
from functools import lru_cache

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from sarto.control import audit, projects
from sarto.control.auth import Principal
from sarto.control.projects import Project
from sarto.control.roles import SARTO_ADMIN, grants
from sarto.errors import ERROR_INFO, PermissionDenied
from sarto.names import check_project
from sarto.storage.database import Database
from sarto.storage.tables import binding

SERVICE = "service"
"""The resource above all projects; its bindings hold everywhere."""

__all__ = ["SARTO_ADMIN", "SERVICE", "Principal", "allowed", "bind", "denied", "grants", "require", "visible_projects"]


def require(database: Database, principal: Principal, permission: str, project: str, on: str = "") -> Project:
    """The project, by id or number, in which the principal holds the permission; `on` is the resource under it that is
    asked for (`buckets/B`, `serviceAccounts/E`, `locations/L/models/M`). Raises PermissionDenied."""
    found = projects.find(database, check_project(project))
    name = f"projects/{project}" + (f"/{on}" if on else "")
    is_allowed = found is not None and allowed(database, principal, permission, found.number, on)
    audit.note(principal, permission, name, found.number if found else "", is_allowed)
    if found is None or not is_allowed:
        raise denied(permission, name)
    return found


def require_everywhere(database: Database, principal: Principal, permission: str) -> None:
    """For what belongs to no project, such as making one. Raises PermissionDenied."""
    is_allowed = any(r == SERVICE and grants(role, permission) for r, role in _held(database, principal.member))
    audit.note(principal, permission, "the service", "", is_allowed)
    if not is_allowed:
        raise denied(permission, "the service")


def require_somewhere(database: Database, principal: Principal, permission: str) -> None:
    """For what belongs to no project and is used in all, such as a base model by its bare name. Raises
    PermissionDenied for whoever holds the permission nowhere."""
    is_allowed = any(grants(role, permission) for _, role in _held(database, principal.member))
    audit.note(principal, permission, "the service", "", is_allowed)
    if not is_allowed:
        raise denied(permission, "the service")


def allowed(database: Database, principal: Principal, permission: str, project: str, on: str = "") -> bool:
    """Whether the principal holds the permission in the project with this number, or on the resource under it."""
    above = (SERVICE, f"projects/{project}", f"projects/{project}/{on}")
    return any(r in above and grants(role, permission) for r, role in _held(database, principal.member))


def visible_projects(database: Database, principal: Principal) -> list[Project]:
    """Every project the principal may see, oldest first."""
    permission = "resourcemanager.projects.get"
    return [p for p in projects.all_projects(database) if allowed(database, principal, permission, p.number)]


def bind(connection: Connection, resource: str, role: str, member: str) -> None:
    """Give a right; no change when it is there."""
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
    """(resource, role) of every binding of a member, at most a second old; a change made here counts at once."""
    return _read(database, member, int(time.monotonic()), database.rights_changes)


@lru_cache(maxsize=4096)
def _read(database: Database, member: str, _second: int, _changes: int) -> frozenset[tuple[str, str]]:
    with database.reading() as connection:
        rows = connection.execute(_BINDINGS, {"member": member}).all()
    return frozenset(map(tuple, rows))


_BINDINGS = sa.select(binding.c.resource, binding.c.role).where(binding.c.member == sa.bindparam("member"))
