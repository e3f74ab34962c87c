"""What is decided during a request: who asked for which permission on what, and whether it was granted.

`iam` notes, the doors open a `Call` around each request, and `audit_log` writes. Knows no database.
"""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass, field

from sarto.control.auth import Principal

PREFIX = "type.googleapis.com/google.cloud.audit.AuditLog"
READS = frozenset({"get", "list", "getIamPolicy", "search"})
DATA = ("storage.objects.", "aiplatform.endpoints.predict", "cloudtranslate.", "cloudkms.cryptoKeyVersions.useTo")
SERVICES = {
    "tuningJobs": "GenAiTuningService",
    "models": "ModelService",
    "endpoints": "EndpointService",
    "batchPredictionJobs": "JobService",
    "operations": "Operations",
    "contexts": "MetadataService",
    "executions": "MetadataService",
}
SINGULAR = {"batchPredictionJobs": "BatchPredictionJob", "cryptoKeys": "CryptoKey"}


@dataclass(frozen=True)
class Decision:
    principal: str
    permission: str
    resource: str
    project: str
    """Number; empty for what belongs to none, or to one that is not there."""
    granted: bool

    @property
    def is_admin_write(self) -> bool:
        """Whether it changes something other than data: such entries are always written."""
        return not self.permission.startswith(DATA) and self.permission.rpartition(".")[2] not in READS


@dataclass
class Call:
    """One request; `decisions` are those that are not written yet."""

    request: str
    address: str
    version: str = "v1"
    decisions: dict[tuple[str, str], Decision] = field(default_factory=dict)


CURRENT: ContextVar[Call | None] = ContextVar("call", default=None)


def note(principal: Principal, permission: str, resource: str, project: str, is_allowed: bool) -> None:
    """Remember a decision; outside a request (a run, a command) there is nobody to answer to."""
    call = CURRENT.get()
    if call is not None:
        call.decisions[permission, resource] = Decision(principal.member, permission, resource, project, is_allowed)


def method_name(permission: str, version: str) -> str:
    """Google's name of the method that asks for the permission."""
    service, collection, verb = permission.split(".")
    if service == "storage":
        return "storage.setIamPermissions" if verb == "setIamPolicy" else permission
    if permission == "aiplatform.endpoints.predict":
        return f"google.cloud.aiplatform.{version}.PredictionService.GenerateContent"
    one = SINGULAR.get(collection, collection[0].upper() + collection[1:].removesuffix("s"))
    many = collection[0].upper() + collection[1:]
    what = many if verb == "list" else "" if verb.endswith("IamPolicy") else one
    action = verb[0].upper() + verb[1:] + what
    if service == "aiplatform":
        return f"google.cloud.aiplatform.{version}.{SERVICES.get(collection, many + 'Service')}.{action}"
    if service == "iam":
        return "google.iam.admin.v1." + action.replace("IamPolicy", "IAMPolicy")
    if service == "cloudkms":
        return f"google.cloud.kms.v1.KeyManagementService.{action}"
    if service == "resourcemanager":
        return action if verb.endswith("IamPolicy") else f"google.cloud.resourcemanager.v3.Projects.{action}"
    return f"google.{service}.{action}"
