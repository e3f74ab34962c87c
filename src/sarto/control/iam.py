"""Who may do what: roles are constants, `require` is the one question. A project is a wall: a foreign project and one
that does not exist answer alike. Every control function a door calls asks this first.
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache

from sarto.control import projects
from sarto.control.auth import Principal
from sarto.control.projects import Project
from sarto.errors import ERROR_INFO, PermissionDenied
from sarto.names import check_project
from sarto.storage.database import Database


@dataclass(frozen=True)
class Role:
    permissions: tuple[str, ...]
    every_project: bool = False


SARTO_ADMIN = "roles/sarto.admin"
ROLES: dict[str, Role] = {
    SARTO_ADMIN: Role(("*",), every_project=True),
    "roles/owner": Role(("*",)),
    "roles/aiplatform.admin": Role(("aiplatform.*", "storage.objects.*", "storage.buckets.*", "cloudtranslate.*")),
    "roles/aiplatform.user": Role(("aiplatform.*", "storage.objects.*", "storage.buckets.get", "cloudtranslate.*")),
    "roles/aiplatform.viewer": Role(("aiplatform.*.get", "aiplatform.*.list")),
}


@lru_cache(maxsize=4096)
def grants(role: str, permission: str) -> bool:
    """Whether a role holds a permission within its project."""
    return role in ROLES and any(fnmatchcase(permission, pattern) for pattern in ROLES[role].permissions)


def require(database: Database, principal: Principal, permission: str, project: str) -> Project:
    """The project, by id or number, in which the principal holds the permission. Raises PermissionDenied."""
    found = projects.find(database, check_project(project))
    if found is None or not _allowed(principal, permission, found):
        raise denied(permission, f"projects/{project}")
    return found


def require_everywhere(principal: Principal, permission: str) -> None:
    """For what belongs to no project, such as making one. Raises PermissionDenied."""
    if not (grants(principal.role, permission) and ROLES[principal.role].every_project):
        raise denied(permission, "the service")


def visible_projects(database: Database, principal: Principal) -> list[Project]:
    """Every project the principal may see, oldest first."""
    return [p for p in projects.all_projects(database) if _allowed(principal, "resourcemanager.projects.get", p)]


def denied(permission: str, resource: str) -> PermissionDenied:
    detail = {
        "@type": ERROR_INFO,
        "reason": "IAM_PERMISSION_DENIED",
        "domain": "aiplatform.googleapis.com",
        "metadata": {"permission": permission, "resource": resource},
    }
    return PermissionDenied(
        f"Permission '{permission}' denied on resource '//aiplatform.googleapis.com/{resource}' (or it may not exist).",
        [detail],
    )


def _allowed(principal: Principal, permission: str, project: Project) -> bool:
    if not grants(principal.role, permission):
        return False
    return principal.project == project.number or ROLES[principal.role].every_project
