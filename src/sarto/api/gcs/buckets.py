"""Buckets over the storage JSON API. A field of a bucket that Sarto does not support is refused by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.types import ASGIApp

from sarto.api.gcs.bucket_call import BucketCall, conditions, json_failure, moment, number, refuse_unheeded
from sarto.api.http.requests import query, read_json
from sarto.api.http.responses import Reply, reply
from sarto.api.http.services import in_thread, principal, services
from sarto.control.access import authorization
from sarto.control.keys import key_use
from sarto.control.models import model_bucket
from sarto.errors import InvalidArgument, SartoError, Unimplemented
from sarto.storage.buckets.store import Bucket

LIST, CREATE = "storage.buckets.list", "storage.buckets.create"
GIVEN_BY_US = frozenset(
    "kind id selfLink name projectNumber metageneration etag timeCreated updated location locationType".split()
)
AS_IT_IS: dict[str, tuple[Any, ...]] = {
    "versioning": ({"enabled": False},),
    "hierarchicalNamespace": ({"enabled": False},),
    "softDeletePolicy": ({"retentionDurationSeconds": "0"}, {"retentionDurationSeconds": 0}),
    "billing": ({"requesterPays": False},),
    "defaultEventBasedHold": (False,),
    "rpo": ("DEFAULT",),
}
"""Fields that are accepted only with the value that every bucket has."""


async def create(request: Request) -> ASGIApp:
    try:
        refuse_unheeded(request)
        body = await read_json(request)
        if not isinstance(body, dict) or not isinstance(body.get("name"), str):
            raise InvalidArgument('The bucket resource needs a "name".')
        location = body.get("location") or "US"
        if not (isinstance(location, str) and location.isascii() and location.replace("-", "").isalnum()):
            raise InvalidArgument('"location" must name a region such as us-central1.')
        body = {key: value for key, value in body.items() if value is not None}
        bucket = await in_thread(request, _create, request, body["name"], location, _read({}, body))
        return reply(bucket_json(request, bucket))
    except SartoError as error:
        return json_failure(error)


def _create(request: Request, name: str, location: str, resource: Mapping[str, Any]) -> Bucket:
    project = _project(request, CREATE)
    model_bucket.check_not_reserved(name)
    resource = key_use.of_bucket(services(request).control, project, location, resource)
    return services(request).buckets.create_bucket(project, name, location, resource=resource)


async def list_buckets(request: Request) -> ASGIApp:
    try:
        values = query(request)
        limit = min(number(values, "maxResults") or 1000, 1000)
        project = await in_thread(request, _project, request, LIST)
        buckets = services(request).buckets
        prefix, after = values.get("prefix", ""), values.get("pageToken", "")
        result = await in_thread(request, buckets.buckets, project, prefix=prefix, after=after, limit=limit + 1)
        page = result[:limit]
        written: dict[str, Any] = {"kind": "storage#buckets", "items": [bucket_json(request, one) for one in page]}
        if len(result) > limit:
            written["nextPageToken"] = page[-1].name
        return reply(written)
    except SartoError as error:
        return json_failure(error)


def _project(request: Request, permission: str) -> str:
    """The number of the project in the query; without one, the caller's own."""
    caller = principal(request)
    project = query(request).get("project") or caller.project
    return authorization.require(services(request).database, caller, permission, project).number


async def get(call: BucketCall) -> ASGIApp:
    conditions(call.query).check_metageneration(call.bucket.metageneration)
    return reply(bucket_json(call.request, call.bucket))


async def patch(call: BucketCall) -> ASGIApp:
    body = await read_json(call.request)
    if not isinstance(body, dict):
        raise InvalidArgument("The bucket resource must be a JSON object.")
    is_patch = call.request.method == "PATCH"

    def change(resource: Mapping[str, Any]) -> Mapping[str, Any]:
        return _read(resource if is_patch else {}, body)

    stated, bucket = _read({}, body), call.bucket
    checked = await call.run(key_use.of_bucket, services(call.request).control, call.project, bucket.location, stated)
    body = {**body, **{key: value for key, value in checked.items() if key == "encryption"}}

    preconditions = conditions(call.query)
    changed = await call.run(call.buckets.update_bucket, call.bucket.name, change, preconditions, call.project)
    return reply(bucket_json(call.request, changed))


async def delete(call: BucketCall) -> ASGIApp:
    await call.run(call.buckets.delete_bucket, call.bucket.name, conditions(call.query), call.project)
    return Reply(status=204)


async def storage_layout(call: BucketCall) -> ASGIApp:
    bucket = call.bucket
    written = {"kind": "storage#storageLayout", "bucket": bucket.name, **_location_fields(bucket)}
    return reply(written | {"hierarchicalNamespace": {"enabled": False}})


async def managed_folders(call: BucketCall) -> ASGIApp:
    """An empty list; clients request it before they delete a bucket."""
    return reply({"kind": "storage#managedFolders"})


def bucket_json(request: Request, bucket: Bucket) -> dict[str, Any]:
    """The storage#bucket resource."""
    return {
        "kind": "storage#bucket",
        "id": bucket.name,
        "name": bucket.name,
        "selfLink": f"{request.url.scheme}://{request.url.netloc}/storage/v1/b/{bucket.name}",
        "projectNumber": bucket.project,
        **_location_fields(bucket),
        "storageClass": "STANDARD",
        "metageneration": str(bucket.metageneration),
        "etag": f"{bucket.metageneration}",
        "timeCreated": moment(bucket.create_time),
        "updated": moment(bucket.update_time),
        "iamConfiguration": {"uniformBucketLevelAccess": {"enabled": True}, "publicAccessPrevention": "inherited"},
        **bucket.resource,
    }


def _location_fields(bucket: Bucket) -> dict[str, str]:
    kind = "region" if any(c.isdigit() for c in bucket.location) else "multi-region"
    return {"location": bucket.location, "locationType": kind}


def _read(base: Mapping[str, Any], body: Mapping[str, Any]) -> dict[str, Any]:
    """A writer's labels and storage class, over `base`."""
    resource = dict(base)
    for key, value in body.items():
        if key == "labels":
            labels = {**base.get("labels", {}), **(value or {})} if isinstance(value, dict | None) else None
            if labels is None or not all(isinstance(text, str | None) for text in labels.values()) or len(labels) > 64:
                raise InvalidArgument('"labels" must be an object of at most 64 texts.')
            resource["labels"] = {name: text for name, text in labels.items() if text is not None} if value else {}
        elif key == "storageClass" and value in ("STANDARD", None):
            continue
        elif key == "encryption":
            text = value.get("defaultKmsKeyName") if isinstance(value, dict) else value
            if not isinstance(text, str | None) or (isinstance(value, dict) and value.keys() - {"defaultKmsKeyName"}):
                raise InvalidArgument('"encryption" must be {"defaultKmsKeyName": KEY}.')
            resource["encryption"] = {"defaultKmsKeyName": text} if text else {}
        elif key == "iamConfiguration":
            _check_access(value)
        elif key not in GIVEN_BY_US and value not in (None, False, "", [], {}) and value not in AS_IT_IS.get(key, ()):
            raise Unimplemented(f'Bucket field "{key[:80]}" with this value is not supported; leave it out.')
    return resource


def _check_access(value: Any) -> None:
    known = {"uniformBucketLevelAccess", "bucketPolicyOnly", "publicAccessPrevention"}
    if not isinstance(value, dict) or value.keys() - known:
        raise Unimplemented('"iamConfiguration" supports only "uniformBucketLevelAccess" and "publicAccessPrevention".')
    for key in ("uniformBucketLevelAccess", "bucketPolicyOnly"):
        if isinstance(value.get(key), dict) and value[key].get("enabled") is False:
            raise Unimplemented("Access lists on objects are not supported: uniform bucket-level access is always on.")
