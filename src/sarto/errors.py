"""One exception per google.rpc code. No other module knows HTTP statuses.

Raise where the fault is found; `api/http/application.py` converts an error to the HTTP body, and a failed job stores
`to_status()`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Any, ClassVar

BAD_REQUEST = "type.googleapis.com/google.rpc.BadRequest"
ERROR_INFO = "type.googleapis.com/google.rpc.ErrorInfo"
RETRY_INFO = "type.googleapis.com/google.rpc.RetryInfo"


class SartoError(Exception):
    """Base of all API errors; `details` are google.rpc detail messages as JSON objects."""

    code: ClassVar[int] = 2
    status: ClassVar[str] = "UNKNOWN"
    http_status: ClassVar[int] = 500

    def __init__(self, message: str, details: Iterable[dict[str, Any]] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.details = list(details)

    def to_status(self) -> dict[str, Any]:
        """The google.rpc.Status of this error: `code` is the rpc code, not the HTTP status."""
        status: dict[str, Any] = {"code": self.code, "message": self.message}
        if self.details:
            status["details"] = self.details
        return status


class Cancelled(SartoError):
    code, status, http_status = 1, "CANCELLED", 499


MOST_VIOLATIONS = 100
MOST_PATH, MOST_WORDS = 300, 2000
"""Most characters of a violation's field and of its description; both may quote the request."""


@dataclass(frozen=True)
class FieldViolation:
    """One fault of a request: `field` is a snake_case path such as `tuning_job.labels[k]`."""

    field: str
    description: str


def _short(row: FieldViolation) -> FieldViolation:
    if len(row.field) <= MOST_PATH and len(row.description) <= MOST_WORDS:
        return row
    return FieldViolation(_cut(row.field, MOST_PATH), _cut(row.description, MOST_WORDS))


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[:most]}…"


class InvalidArgument(SartoError):
    """The request itself is wrong. With violations, the message numbers them all and details carry a BadRequest."""

    code, status, http_status = 3, "INVALID_ARGUMENT", 400

    def __init__(self, message: str, violations: Iterable[FieldViolation] = (), details: Iterable[dict[str, Any]] = ()):
        self.violations = list(violations)
        all_details = list(details)
        if self.violations:
            rows = [{"field": v.field, "description": v.description} for v in self.violations]
            all_details.insert(0, {"@type": BAD_REQUEST, "fieldViolations": rows})
        super().__init__(message, all_details)

    @classmethod
    def of(cls, violations: Iterable[FieldViolation], *, more: bool = False) -> InvalidArgument:
        """An error for these faults, numbered, each with its field and message, in the hosted service's wording. `more`
        means that further faults were not checked."""
        each = iter(violations)
        rows = [_short(row) for row in islice(each, MOST_VIOLATIONS)]
        left = sum(1 for _ in each)
        listed = "\t".join(f"{i}.Field: {v.field}; Message: {v.description}" for i, v in enumerate(rows, 1))
        rest = f"\tand {left} more" if left and not more else "\tand more" if left or more else ""
        return cls(f"List of found errors:\t{listed}{rest}", rows)

    @classmethod
    def field(cls, field: str, description: str) -> InvalidArgument:
        return cls.of([FieldViolation(field, description)])


class DeadlineExceeded(SartoError):
    code, status, http_status = 4, "DEADLINE_EXCEEDED", 504


class NotFound(SartoError):
    code, status, http_status = 5, "NOT_FOUND", 404


class AlreadyExists(SartoError):
    code, status, http_status = 6, "ALREADY_EXISTS", 409


class PermissionDenied(SartoError):
    code, status, http_status = 7, "PERMISSION_DENIED", 403


class ResourceExhausted(SartoError):
    code, status, http_status = 8, "RESOURCE_EXHAUSTED", 429


class FailedPrecondition(SartoError):
    code, status, http_status = 9, "FAILED_PRECONDITION", 400


class Aborted(SartoError):
    code, status, http_status = 10, "ABORTED", 409


class OutOfRange(SartoError):
    code, status, http_status = 11, "OUT_OF_RANGE", 400


class Unimplemented(SartoError):
    """A feature of the API that this server does not have. It is 400 over HTTP, because clients retry on 5xx."""

    code, status, http_status = 12, "UNIMPLEMENTED", 400


class Internal(SartoError):
    code, status, http_status = 13, "INTERNAL", 500


class Unavailable(SartoError):
    code, status, http_status = 14, "UNAVAILABLE", 503


class Unauthenticated(SartoError):
    code, status, http_status = 16, "UNAUTHENTICATED", 401


class MethodNotAllowed(Unimplemented):
    """An existing URL with a verb that it does not have; `allowed` are those it has."""

    http_status = 405

    def __init__(self, message: str, allowed: Iterable[str] = ()) -> None:
        super().__init__(message)
        self.allowed = sorted(allowed)


class PayloadTooLarge(InvalidArgument):
    """A body over the limit."""

    http_status = 413


class HeadersTooLarge(InvalidArgument):
    """Headers over the limits of number or size."""

    http_status = 431


class NotEmpty(FailedPrecondition):
    """A bucket that still holds objects."""

    http_status = 409


class ConditionNotMet(FailedPrecondition):
    """A precondition (generation, metageneration) does not hold, since another caller wrote first."""

    http_status = 412


BY_CODE: dict[int, type[SartoError]] = {
    kind.code: kind
    for kind in (
        Cancelled, InvalidArgument, DeadlineExceeded, NotFound, AlreadyExists, PermissionDenied, ResourceExhausted,
        FailedPrecondition, Aborted, OutOfRange, Unimplemented, Internal, Unavailable, Unauthenticated,
    )
}  # fmt: skip


def from_status(status: dict[str, Any]) -> SartoError:
    """The exception for a stored google.rpc.Status, for example one from another process."""
    error = BY_CODE.get(int(status.get("code", 13)), Internal)(str(status.get("message", "")))
    error.details = list(status.get("details", ()))
    return error


def fault_of(error: Exception) -> SartoError:
    """The error itself if it is a SartoError; any other is INTERNAL with its type only, since its message is for the
    log."""
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return error if isinstance(error, SartoError) else Internal(f"{type(error).__name__}; the log has more.")
