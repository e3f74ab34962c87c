"""Buckets over the storage JSON API. What a bucket resource says and we cannot do is refused by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.types import ASGIApp

from sarto.api.gcs_door import Call, conditions, json_failure, moment, number, refuse_unheeded
from sarto.api.http import Reply, in_thread, principal, query, read_json, reply, services
from sarto.control import customer_keys, iam
from sarto.errors import InvalidArgument, SartoError, Unimplemented
from sarto.storage.buckets import Bucket

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
"""Fields that may only say what is so anyway."""


async def create(request: Request) -> ASGIApp:
    try:
        refuse_unheeded(request)
        body = await read_json(request)
        if not isinstance(body, dict) or not isinstance(body.get("name"), str):
            raise InvalidArgument('the bucket resource needs a "name"')
        location = body.get("location") or "US"
        if not (isinstance(location, str) and location.isascii() and location.replace("-", "").isalnum()):
            raise InvalidArgument('"location" must name a region such as us-central1')
        made = await in_thread(request, _create, request, body["name"], location, _read({}, body))
        return reply(bucket_json(request, made))
    except SartoError as error:
        return json_failure(error)


def _create(request: Request, name: str, location: str, resource: Mapping[str, Any]) -> Bucket:
    project = _project(request, CREATE)
    resource = customer_keys.of_bucket(services(request).control, project, location, resource)
    return services(request).buckets.create_bucket(project, name, location, resource=resource)


async def list_(request: Request) -> ASGIApp:
    try:
        values = query(request)
        limit = min(number(values, "maxResults") or 1000, 1000)
        project = await in_thread(request, _project, request, LIST)
        buckets = services(request).buckets
        prefix, after = values.get("prefix", ""), values.get("pageToken", "")
        found = await in_thread(request, buckets.buckets, project, prefix=prefix, after=after, limit=limit + 1)
        page = found[:limit]
        written: dict[str, Any] = {"kind": "storage#buckets", "items": [bucket_json(request, one) for one in page]}
        if len(found) > limit:
            written["nextPageToken"] = page[-1].name
        return reply(written)
    except SartoError as error:
        return json_failure(error)


def _project(request: Request, permission: str) -> str:
    """The number of the project in the query; without one, the caller's own."""
    caller = principal(request)
    asked = query(request).get("project") or caller.project
    return iam.require(services(request).database, caller, permission, asked).number


async def get(call: Call) -> ASGIApp:
    conditions(call.query).check_metageneration(call.bucket.metageneration)
    return reply(bucket_json(call.request, call.bucket))


async def patch(call: Call) -> ASGIApp:
    body = await read_json(call.request)
    if not isinstance(body, dict):
        raise InvalidArgument("the bucket resource must be a JSON object")
    is_patch = call.request.method == "PATCH"

    def change(resource: Mapping[str, Any]) -> Mapping[str, Any]:
        return _read(resource if is_patch else {}, body)

    stated, bucket = _read({}, body), call.bucket
    checked = await call.run(
        customer_keys.of_bucket, services(call.request).control, call.project, bucket.location, stated
    )
    body = {**body, **{key: value for key, value in checked.items() if key == "encryption"}}

    wanted = conditions(call.query)
    changed = await call.run(call.buckets.update_bucket, call.bucket.name, change, wanted, call.project)
    return reply(bucket_json(call.request, changed))


async def delete(call: Call) -> ASGIApp:
    await call.run(call.buckets.delete_bucket, call.bucket.name, conditions(call.query), call.project)
    return Reply(status=204)


async def storage_layout(call: Call) -> ASGIApp:
    bucket = call.bucket
    written = {"kind": "storage#storageLayout", "bucket": bucket.name, **_place(bucket)}
    return reply(written | {"hierarchicalNamespace": {"enabled": False}})


async def managed_folders(call: Call) -> ASGIApp:
    """There are none; clients ask before they delete a bucket."""
    return reply({"kind": "storage#managedFolders"})


def bucket_json(request: Request, bucket: Bucket) -> dict[str, Any]:
    """The storage#bucket resource."""
    return {
        "kind": "storage#bucket",
        "id": bucket.name,
        "name": bucket.name,
        "selfLink": f"{request.url.scheme}://{request.url.netloc}/storage/v1/b/{bucket.name}",
        "projectNumber": bucket.project,
        **_place(bucket),
        "storageClass": "STANDARD",
        "metageneration": str(bucket.metageneration),
        "etag": f"{bucket.metageneration}",
        "timeCreated": moment(bucket.create_time),
        "updated": moment(bucket.update_time),
        "iamConfiguration": {"uniformBucketLevelAccess": {"enabled": True}, "publicAccessPrevention": "inherited"},
        **bucket.resource,
    }


def _place(bucket: Bucket) -> dict[str, str]:
    kind = "region" if any(c.isdigit() for c in bucket.location) else "multi-region"
    return {"location": bucket.location, "locationType": kind}


def _read(base: Mapping[str, Any], body: Mapping[str, Any]) -> dict[str, Any]:
    """Labels and storage class as a writer may state them, over `base`."""
    kept = dict(base)
    for key, value in body.items():
        if key == "labels":
            labels = {**base.get("labels", {}), **(value or {})} if isinstance(value, dict | None) else None
            if labels is None or not all(isinstance(text, str | None) for text in labels.values()) or len(labels) > 64:
                raise InvalidArgument('"labels" must be an object of at most 64 texts')
            kept["labels"] = {name: text for name, text in labels.items() if text is not None} if value else {}
        elif key == "storageClass" and value in ("STANDARD", None):
            continue
        elif key == "encryption":
            text = value.get("defaultKmsKeyName") if isinstance(value, dict) else value
            if not isinstance(text, str | None) or (isinstance(value, dict) and value.keys() - {"defaultKmsKeyName"}):
                raise InvalidArgument('"encryption" is {"defaultKmsKeyName": KEY}')
            kept["encryption"] = {"defaultKmsKeyName": text} if text else {}
        elif key == "iamConfiguration":
            _check_access(value)
        elif key not in GIVEN_BY_US and value not in (None, False, "", [], {}) and value not in AS_IT_IS.get(key, ()):
            raise Unimplemented(f'bucket field "{key[:80]}" with this value is not supported; leave it out')
    return kept


def _check_access(value: Any) -> None:
    known = {"uniformBucketLevelAccess", "bucketPolicyOnly", "publicAccessPrevention"}
    if not isinstance(value, dict) or value.keys() - known:
        raise Unimplemented('"iamConfiguration" knows "uniformBucketLevelAccess" and "publicAccessPrevention" only')
    for key in ("uniformBucketLevelAccess", "bucketPolicyOnly"):
        if isinstance(value.get(key), dict) and value[key].get("enabled") is False:
            raise Unimplemented("access lists on objects are not supported: uniform bucket-level access is always on")
