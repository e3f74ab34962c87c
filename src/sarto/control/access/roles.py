"""The roles, under Google's names, and their permissions."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from sarto.system.globs import star_matches


@dataclass(frozen=True)
class Role:
    """`permissions` are patterns; those in `without` are excluded."""

    title: str
    permissions: tuple[str, ...]
    without: tuple[str, ...] = ()


SARTO_ADMIN = "roles/sarto.admin"
TUNING_AGENT = "roles/aiplatform.tuningServiceAgent"
OBJECT_ADMIN = "roles/storage.objectAdmin"
AGENT_ROLES = (TUNING_AGENT, OBJECT_ADMIN)
"""Roles of the service agent in a new project."""
TOKEN_CREATOR = "roles/iam.serviceAccountTokenCreator"
ACCOUNT_USER = "roles/iam.serviceAccountUser"
PROJECT = "resourcemanager.projects.get"
ACCOUNTS = ("iam.serviceAccounts.get", "iam.serviceAccounts.list")
POLICIES = ("*.getIamPolicy", "*.setIamPolicy")
ROLES: dict[str, Role] = {
    SARTO_ADMIN: Role("Administrator of the whole service; bound to the service alone", ("*",)),
    "roles/owner": Role(
        "Everything in a project",
        ("*",),
        ("resourcemanager.projects.create", "serviceusage.quotas.update", "monitoring.timeSeries.list"),
    ),
    "roles/resourcemanager.projectIamAdmin": Role(
        "The policy of a project", ("resourcemanager.projects.*IamPolicy", PROJECT)
    ),
    "roles/aiplatform.admin": Role(
        "Everything of tuning, models and endpoints", ("aiplatform.*", "cloudtranslate.*", PROJECT)
    ),
    "roles/aiplatform.user": Role("Tune and use models", ("aiplatform.*", "cloudtranslate.*", PROJECT), POLICIES),
    "roles/aiplatform.viewer": Role(
        "See, and change nothing", ("aiplatform.*.get", "aiplatform.*.list", "aiplatform.*.read", PROJECT)
    ),
    TUNING_AGENT: Role(
        "Rights of a run besides those in buckets",
        (
            "aiplatform.models.get", "aiplatform.models.upload",
            "aiplatform.endpoints.create", "aiplatform.endpoints.deploy", "aiplatform.endpoints.get",
        ),
    ),
    ACCOUNT_USER: Role("Act as a service account", ("iam.serviceAccounts.actAs", *ACCOUNTS)),
    TOKEN_CREATOR: Role(
        "Create tokens of a service account",
        ("iam.serviceAccounts.getAccessToken", "iam.serviceAccounts.getOpenIdToken", "iam.serviceAccounts.get"),
    ),
    "roles/iam.serviceAccountAdmin": Role(
        "Create, disable and delete service accounts",
        ("iam.serviceAccounts.*", PROJECT),
        ("iam.serviceAccounts.actAs", "iam.serviceAccounts.getAccessToken", "iam.serviceAccounts.getOpenIdToken"),
    ),
    "roles/iam.serviceAccountKeyAdmin": Role(
        "Create and delete keys of service accounts", ("iam.serviceAccountKeys.*", *ACCOUNTS)
    ),
    "roles/storage.admin": Role("Everything in buckets", ("storage.*",)),
    OBJECT_ADMIN: Role("Read and write objects", ("storage.objects.*",)),
    "roles/storage.objectCreator": Role("Store objects", ("storage.objects.create",)),
    "roles/storage.objectViewer": Role("Read objects", ("storage.objects.get", "storage.objects.list")),
    "roles/cloudkms.admin": Role("Manage keys, without using them", ("cloudkms.*",), ("cloudkms.*.useTo*",)),
    "roles/cloudkms.viewer": Role("See keys", ("cloudkms.*.get", "cloudkms.*.list")),
    "roles/cloudkms.cryptoKeyEncrypterDecrypter": Role(
        "Encrypt and decrypt with a key",
        ("cloudkms.cryptoKeyVersions.useToEncrypt", "cloudkms.cryptoKeyVersions.useToDecrypt"),
    ),
    "roles/logging.viewer": Role("Read the audit log", ("logging.logEntries.list",)),
}  # fmt: skip


@lru_cache(maxsize=16384)
def grants(role: str, permission: str) -> bool:
    """Whether a role has a permission."""
    held = ROLES.get(role)
    if held is None or any(star_matches(pattern, permission) for pattern in held.without):
        return False
    return any(star_matches(pattern, permission) for pattern in held.permissions)
