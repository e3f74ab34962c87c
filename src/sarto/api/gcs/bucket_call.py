"""Shared parts of the storage handlers: the bucket of a request, its conditions and fields, resources, errors.

`opened` is the only place that checks the caller's rights on a bucket.
"""

from __future__ import annotations

import base64
import shutil
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, ParamSpec, TypeVar
from urllib.parse import quote
from xml.sax.saxutils import escape

import orjson
from starlette.requests import Request
from starlette.types import ASGIApp

from sarto.api.http.requests import query
from sarto.api.http.responses import Reply, failure
from sarto.api.http.routing import Handler
from sarto.api.http.services import in_thread, principal, services
from sarto.control.access import authorization
from sarto.errors import (
    InvalidArgument,
    NotFound,
    PayloadTooLarge,
    PermissionDenied,
    ResourceExhausted,
    SartoError,
    Unimplemented,
)
from sarto.schema.wire import format_time
from sarto.storage.buckets.blobs import BLOCK, Checksums
from sarto.storage.buckets.objects import NoSuchBucket
from sarto.storage.buckets.store import Bucket, Buckets, Conditions, ObjectFields, StoredObject

P = ParamSpec("P")
T = TypeVar("T")

READS = frozenset(["storage.objects.get", "storage.objects.list", "storage.buckets.get"])
STORAGE_CLASSES = ("STANDARD", "NEARLINE", "COLDLINE", "ARCHIVE", "MULTI_REGIONAL", "REGIONAL")
REASONS = {
    400: "invalid", 401: "authError", 403: "forbidden", 404: "notFound", 409: "conflict", 412: "conditionNotMet",
    413: "uploadTooLarge", 416: "requestedRangeNotSatisfiable", 429: "rateLimitExceeded",
    503: "backendError",
}  # fmt: skip
XML_CODES = {
    400: "InvalidArgument", 403: "AccessDenied", 404: "NoSuchKey", 409: "BucketNotEmpty", 412: "PreconditionFailed",
    416: "InvalidRange", 429: "SlowDown", 503: "ServiceUnavailable",
}  # fmt: skip
SETTABLE = {
    "contentType": "content_type", "contentEncoding": "content_encoding", "contentLanguage": "content_language",
    "contentDisposition": "content_disposition", "cacheControl": "cache_control", "customTime": "custom_time",
    "storageClass": "storage_class",
}  # fmt: skip
GIVEN_BY_US = frozenset(
    "kind id selfLink mediaLink name bucket generation metageneration size md5Hash crc32c etag timeCreated updated "
    "timeStorageClassUpdated timeFinalized componentCount owner timeDeleted".split()
)
REFUSED_PARAMETERS = ("kmsKeyName", "destinationKmsKeyName", "matchGlob")
ACL_PARAMETERS = ("predefinedAcl", "destinationPredefinedAcl", "predefinedDefaultObjectAcl")
OWN_ACLS = ("private", "projectPrivate", "bucketOwnerRead", "bucketOwnerFullControl")
"""Access lists that equal the default: access by project and policy. Every object here has it."""
KEY_HEADERS = ("x-goog-encryption-", "x-goog-copy-source-encryption-")


@dataclass(frozen=True)
class BucketCall:
    """One request to a bucket that the caller may use. `name` is the object of the path, empty if there is none."""

    request: Request
    bucket: Bucket
    buckets: Buckets
    query: Mapping[str, str]
    name: str

    @property
    def project(self) -> str:
        return self.bucket.project

    @property
    def member(self) -> str:
        """The caller in the form of policies."""
        return principal(self.request).member

    @property
    def address(self) -> str:
        """Scheme and host of the client's URL."""
        return f"{self.request.url.scheme}://{self.request.url.netloc}"

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await in_thread(self.request, function, *args, **kwargs)

    async def writing(self, preconditions: Conditions | None = None) -> Conditions:
        """The conditions of a write to the call's bucket, by default those of the query."""
        return await self.run(
            writing, self.request, self.bucket, conditions(self.query) if preconditions is None else preconditions
        )

    async def stat(self) -> StoredObject:
        """The object of the path, in the generation of the query if there is one."""
        generation = number(self.query, "generation")
        return await self.run(self.buckets.stat, self.bucket.name, self.name, generation, self.project)


def bucket_handler(
    handler: Callable[[BucketCall], Awaitable[ASGIApp]], permission: str, refusal: Callable[[SartoError], Reply]
) -> Handler:
    """A handler of the route table: opens the path's bucket under `permission`, and returns errors in storage's
    form."""

    async def enter(request: Request) -> ASGIApp:
        try:
            refuse_unheeded(request)
            name = request.path_params.get("object", "")
            bucket = await in_thread(request, opened, request, request.path_params["bucket"], permission, name)
            return await handler(BucketCall(request, bucket, services(request).buckets, query(request), name))
        except SartoError as error:
            return refusal(error)

    return enter


def opened(request: Request, name: str, permission: str, about: str = "") -> Bucket:
    """The bucket if the caller has `permission` on it; a bucket of another project is treated as missing. `about` is
    the object for the audit log."""
    caller = principal(request)
    bucket = services(request).buckets.bucket(name)
    if bucket.is_public and permission in READS:
        return bucket
    try:
        about = f"objects/{about}" if about else ""
        authorization.require(
            services(request).database, caller, permission, bucket.project, f"buckets/{bucket.name}", about
        )
    except PermissionDenied:
        if bucket.is_public or bucket.project == caller.project or sees(request, bucket):
            raise
        raise NoSuchBucket from None
    return bucket


def sees(request: Request, bucket: Bucket) -> bool:
    """Whether the caller may know that the bucket exists."""
    database, on = services(request).database, f"buckets/{bucket.name}"
    known = ("storage.buckets.get", "storage.objects.get", "storage.objects.list", "storage.buckets.getIamPolicy")
    return any(authorization.allowed(database, principal(request), one, bucket.project, on) for one in known)


def refuse_unheeded(request: Request) -> None:
    """Refuse parameters and headers that would change the meaning of a request and are not supported."""
    for name in request.headers:
        if name.startswith(KEY_HEADERS):
            raise Unimplemented("Customer-supplied encryption keys are not supported; leave the key headers out.")
    for name in REFUSED_PARAMETERS:
        if query(request).get(name):
            raise Unimplemented(f'"{name}" is not supported; leave it out.')
    for name in ACL_PARAMETERS:
        if (value := query(request).get(name)) and value not in OWN_ACLS:
            words = (
                f'"{name}" is "{value[:40]}": access lists are not supported, only policies grant rights; leave it out'
            )
            raise Unimplemented(words)
    if flag(query(request), "enableObjectRetention"):
        raise Unimplemented('"enableObjectRetention" is not supported; leave it out.')
    if flag(query(request), "softDeleted"):
        raise Unimplemented("Soft-deleted objects are not supported: a deleted object cannot be restored.")


# Errors


def json_failure(error: SartoError) -> Reply:
    is_missing = type(error) is Unimplemented
    reason = "notImplemented" if is_missing else REASONS.get(error.http_status, "backendError")
    row = {"message": error.message, "domain": "global", "reason": reason}
    body = {"code": error.http_status, "message": error.message, "errors": [row]}
    return Reply(orjson.dumps({"error": body}), error.http_status)


def xml_failure(error: SartoError) -> Reply:
    if isinstance(error, NoSuchBucket):  # so is every URL that is nothing at all: /BUCKET matches them
        return failure(NotFound("There is no method at this path, nor a bucket of that name."))
    is_missing = type(error) is Unimplemented
    code = "NotImplemented" if is_missing else XML_CODES.get(error.http_status, "InternalError")
    return xml(f"<Error><Code>{code}</Code><Message>{escape(error.message)}</Message></Error>", error.http_status)


def xml(body: str, status: int = 200) -> Reply:
    text = f"<?xml version='1.0' encoding='UTF-8'?>{body}"
    return Reply(text.encode(), status, content_type=b"application/xml; charset=UTF-8")


# Reading


def number(values: Mapping[str, str], name: str, largest: int = 2**63 - 1) -> int | None:
    text = values.get(name)
    if text is None or text == "":
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 20 and int(text) <= largest):
        raise InvalidArgument(f'"{name}" is "{text[:40]}", not a number from 0 to {largest}.')
    return int(text)


def flag(values: Mapping[str, str], name: str) -> bool:
    """A boolean parameter; some clients write it with a capital."""
    return values.get(name, "").lower() == "true"


def conditions(values: Mapping[str, str], prefix: str = "if") -> Conditions:
    """`ifGenerationMatch` and the other conditions; with prefix "ifSource" those of a copy's source."""
    return Conditions(
        number(values, f"{prefix}GenerationMatch"),
        number(values, f"{prefix}GenerationNotMatch"),
        number(values, f"{prefix}MetagenerationMatch"),
        number(values, f"{prefix}MetagenerationNotMatch"),
    )


def writing(request: Request, bucket: Bucket, preconditions: Conditions) -> Conditions:
    """The conditions of a write; a caller without the right to delete may not replace an object."""
    database, on = services(request).database, f"buckets/{bucket.name}"
    may = authorization.allowed(database, principal(request), "storage.objects.delete", bucket.project, on)
    return replace(preconditions, may_replace=may)


def checksums(stated: Mapping[str, Any], headers: Mapping[str, str]) -> Checksums:
    """From an object resource's `md5Hash` and `crc32c`, or the headers `X-Goog-Hash` and `Content-MD5`."""
    digests = {"md5": headers.get("content-md5", "")}
    for item in headers.get("x-goog-hash", "").split(","):
        kind, _, value = item.strip().partition("=")
        digests[kind] = value
    return Checksums(
        str(stated.get("md5Hash") or digests["md5"]), str(stated.get("crc32c") or digests.get("crc32c", ""))
    )


def read_fields(body: Any, base: ObjectFields = ObjectFields()) -> ObjectFields:
    """A writer's object resource, over `base`. Null clears; unsupported fields are refused by name."""
    if not isinstance(body, dict):
        raise InvalidArgument("The object resource must be a JSON object.")
    changes: dict[str, Any] = {}
    for key, value in body.items():
        if key in SETTABLE:
            if not isinstance(value, str | None):
                raise InvalidArgument(f'"{key}" must be text.')
            changes[SETTABLE[key]] = value or getattr(ObjectFields(), SETTABLE[key])
        elif key == "metadata":
            changes["metadata"] = _metadata(value, base.metadata)
        elif key not in GIVEN_BY_US and value not in (None, False, "", [], {}):
            raise Unimplemented(f'Object field "{key[:80]}" is not supported; leave it out.')
    fields = replace(base, **changes)
    if fields.storage_class not in STORAGE_CLASSES:
        raise InvalidArgument(f'"storageClass" must be one of {", ".join(STORAGE_CLASSES)}.')
    return fields


def _metadata(value: Any, base: Mapping[str, str]) -> dict[str, str]:
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(text, str | None) for text in value.values()):
        raise InvalidArgument('"metadata" must be an object of texts.')
    return {key: text for key, text in {**base, **value}.items() if text is not None}


async def blocks(stream: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The same bytes in blocks of about a MiB: large enough to hash in a thread, small enough to buffer."""
    held, size = [], 0
    async for piece in stream:
        held.append(piece)
        size += len(piece)
        if size >= BLOCK:
            yield b"".join(held)
            held, size = [], 0
    if held:
        yield b"".join(held)


async def uploaded(call: BucketCall, already: int = 0) -> AsyncIterator[bytes]:
    """The body in blocks, within the size limit and the disk's reserve; `already` bytes came before it. Raises
    PayloadTooLarge, ResourceExhausted."""
    control = services(call.request).control
    most, received = control.limits.max_upload_bytes, already
    async for block in blocks(call.request.stream()):
        received += len(block)
        if received > most:
            raise PayloadTooLarge(f"The upload is too large: the limit is {most} bytes.")
        if shutil.disk_usage(control.buckets.content.uploads).free < control.limits.reserve_bytes + len(block):
            raise ResourceExhausted(
                "The disk of the buckets is full except for its reserve; free space and upload again."
            )
        yield block


# Writing


def moment(seconds: float) -> str:
    return format_time(datetime.fromtimestamp(seconds, UTC))


def http_date(seconds: float) -> str:
    return time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(seconds))


def object_path(stored: StoredObject) -> str:
    return f"/storage/v1/b/{stored.bucket}/o/{quote(stored.name, safe='')}"


def object_json(call: BucketCall, stored: StoredObject) -> dict[str, Any]:
    """The storage#object resource."""
    path = object_path(stored)
    written = {
        "kind": "storage#object",
        "id": f"{stored.bucket}/{stored.name}/{stored.generation}",
        "selfLink": f"{call.address}{path}",
        "mediaLink": f"{call.address}/download{path}?generation={stored.generation}&alt=media",
        "name": stored.name,
        "bucket": stored.bucket,
        "generation": str(stored.generation),
        "metageneration": str(stored.metageneration),
        "size": str(stored.size),
        "md5Hash": stored.md5,
        "crc32c": stored.crc32c,
        "etag": base64.b64encode(f"{stored.generation}/{stored.metageneration}".encode()).decode(),
        "timeCreated": moment(stored.create_time),
        "updated": moment(stored.update_time),
        "timeStorageClassUpdated": moment(stored.create_time),
        "metadata": dict(stored.fields.metadata),
        "kmsKeyName": stored.fields.kms_key,
    }
    written |= {key: getattr(stored.fields, name) for key, name in SETTABLE.items()}
    return {key: value for key, value in written.items() if value not in ("", {})}
