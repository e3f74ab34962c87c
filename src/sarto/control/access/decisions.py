"""The decisions and changes of one request, or of work done on behalf of a caller: principal, permission, resource.

`authorization` records decisions and `storage.database.database.report` records changes. A handler opens an
`AuditedCall` for each request, and a background loop one for each piece of work (`on_behalf`). `audit_log` writes the
entries.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cache

from sarto.control.access.principal import Principal
from sarto.errors import InvalidArgument, SartoError
from sarto.schema.wire import Message, to_snake

PREFIX = "type.googleapis.com/google.cloud.audit.AuditLog"
READS = frozenset({"get", "list", "getIamPolicy", "search"})
OBJECTS = "storage.objects."
DATA = (OBJECTS, "aiplatform.endpoints.predict", "cloudtranslate.", "cloudkms.cryptoKeyVersions.useTo")
SERVICES = {
    "tuningJobs": "GenAiTuningService",
    "models": "ModelService",
    "endpoints": "EndpointService",
    "batchPredictionJobs": "JobService",
    "operations": "Operations",
    "contexts": "MetadataService",
    "executions": "MetadataService",
}
SIGN_IN, EXCHANGE, BEARER = "oauth2.tokens.create", "sts.tokens.exchange", "oauth2.tokens.verify"
"""Names in place of permissions for entries about sign-ins, which need no permission."""
METHODS = {
    SIGN_IN: "google.oauth2.Token",
    EXCHANGE: "google.identity.sts.v1.SecurityTokenService.ExchangeToken",
    BEARER: "google.oauth2.Authenticate",
    "iam.serviceAccounts.getAccessToken": "google.iam.credentials.v1.IAMCredentials.GenerateAccessToken",
    "iam.serviceAccounts.getOpenIdToken": "google.iam.credentials.v1.IAMCredentials.GenerateIdToken",
}
SERVICE = Principal("sarto", "", "service")
"""The principal of the service's own work."""
SINGULAR = {"batchPredictionJobs": "BatchPredictionJob", "cryptoKeys": "CryptoKey"}


@dataclass(frozen=True)
class Decision:
    principal: str
    permission: str
    resource: str
    project: str
    """Number; empty for resources without a project and for missing projects."""
    granted: bool

    @property
    def is_data_access(self) -> bool:
        """Whether it belongs to the log of data access, as at Google; the other log has actions without access to
        data."""
        return self.permission.startswith(DATA) or self._verb in READS

    @property
    def is_act(self) -> bool:
        """Whether it is a change: changes are always logged."""
        return self._verb not in READS and (self.is_of_object or not self.permission.startswith(DATA))

    @property
    def is_of_object(self) -> bool:
        return self.permission.startswith(OBJECTS)

    @property
    def is_reported(self) -> bool:
        """Whether storage reports the changed or created resource by name."""
        return self.is_act and (self.is_of_object or self._verb == "create")

    @property
    def _verb(self) -> str:
        return self.permission.rpartition(".")[2]


@dataclass
class AuditedCall:
    """One request of `who`, or one piece of work that the service does as `who` for the member `asked_by`."""

    request: str
    address: str
    version: str = "v1"
    who: Principal = SERVICE
    asked_by: str = ""
    is_work: bool = False
    decisions: dict[tuple[str, str], Decision] = field(default_factory=dict)
    """Decisions that are not finished yet."""
    written: set[tuple[str, str]] = field(default_factory=set)
    """Decisions that have an entry."""
    reported: set[str] = field(default_factory=set)
    """Permissions under which a change was reported."""


CURRENT: ContextVar[AuditedCall | None] = ContextVar("call", default=None)


@contextmanager
def on_behalf(who: Principal, asked_by: str, work: str) -> Iterator[None]:
    """Within the block, the service acts as `who` for the member `asked_by`; `work` is the job or operation."""
    mine = CURRENT.set(AuditedCall(work, "", who=who, asked_by=asked_by, is_work=True))
    try:
        yield
    finally:
        CURRENT.reset(mine)


def note_use(who: Principal, permission: str, resource: str, project: str, is_allowed: bool) -> None:
    """Record that the service was allowed or refused as `who`. In a caller's request it has no effect: those have
    entries of their own."""
    call = CURRENT.get()
    if call is not None and call.is_work:
        note(who, permission, resource, project, is_allowed)


def note(principal: Principal, permission: str, resource: str, project: str, is_allowed: bool) -> None:
    """Record a decision; no effect outside a call."""
    call = CURRENT.get()
    if call is not None:
        call.decisions[permission, resource] = Decision(principal.member, permission, resource, project, is_allowed)


def method_name(permission: str, version: str) -> str:
    """Google's name of the method with this permission."""
    if permission in METHODS:
        return METHODS[permission]
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


def field_of(error: SartoError) -> str:
    """The path of an error's first field. Names that the caller chose, such as a key of a map or of an unknown field,
    may be data and are `*`."""
    violations = error.violations if isinstance(error, InvalidArgument) else []
    if not violations:
        return ""
    parts = re.split(r"(\[\d{1,9}\]|\.)", violations[0].field[:1000])
    return "".join(part if part in _names() or _BETWEEN.fullmatch(part) else "*" for part in parts if part)


_BETWEEN = re.compile(r"\[\d+\]|\.")


@cache
def _names() -> frozenset[str]:
    """Every field of a message, and every message."""
    names, waiting = set[str](), [Message]
    while waiting:
        kind = waiting.pop()
        waiting += kind.__subclasses__()
        names |= {*kind.model_fields, to_snake(kind.__name__)}
    return frozenset(names)
