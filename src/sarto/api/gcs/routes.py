"""The route table of the storage API, JSON and XML. Read `bucket_call` first, then `objects` and `uploads`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from starlette.types import ASGIApp

from sarto.api.gcs import buckets, objects, uploads, xml
from sarto.api.gcs.batch import MAX_BODY_BYTES, batch_over
from sarto.api.gcs.bucket_call import BucketCall, bucket_handler, json_failure, xml_failure
from sarto.api.http.openapi import ANY_TYPE, NOTHING, XML_ERRORS
from sarto.api.http.routing import SIGNED_IN, Handler, Route

B = "/storage/v1/b"
OBJECTS = f"{B}/{{bucket}}/o"
ONE = f"{OBJECTS}/{{object}}"


def _route(
    method: str,
    path: str,
    handler: Callable[[BucketCall], Awaitable[ASGIApp]],
    permission: str,
    summary: str,
    response: str | None = None,
) -> Route:
    """A route to a bucket; its permission is checked before the handler runs."""
    opened = bucket_handler(handler, permission, json_failure)
    return Route(method, path, opened, permission, summary, response=response, query=None, errors="StorageError")


def _xml(
    method: str, path: str, handler: Callable[[BucketCall], Awaitable[ASGIApp]], permission: str, summary: str
) -> Route:
    response = NOTHING if method == "DELETE" else ANY_TYPE
    opened = bucket_handler(handler, permission, xml_failure)
    return Route(method, path, opened, permission, summary, response=response, query=None, errors=XML_ERRORS)


def _own(method: str, path: str, handler: Handler, permission: str, summary: str) -> Route:
    """A route above the buckets, whose handler checks the permission itself."""
    return Route(method, path, handler, permission, summary, query=None, errors="StorageError")


GET, LIST = "storage.objects.get", "storage.objects.list"
CREATE, UPDATE, DELETE = "storage.objects.create", "storage.objects.update", "storage.objects.delete"

METADATA: list[Route] = [
    _own("GET", B, buckets.list_buckets, buckets.LIST, "List the buckets of a project"),
    _own("POST", B, buckets.create, buckets.CREATE, "Create a bucket"),
    _route("GET", f"{B}/{{bucket}}", buckets.get, "storage.buckets.get", "A bucket"),
    _route("PATCH", f"{B}/{{bucket}}", buckets.patch, "storage.buckets.update", "Change a bucket's labels"),
    _route("PUT", f"{B}/{{bucket}}", buckets.patch, "storage.buckets.update", "Replace a bucket's labels"),
    _route("DELETE", f"{B}/{{bucket}}", buckets.delete, "storage.buckets.delete", "Delete an empty bucket", NOTHING),
    _route("GET", f"{B}/{{bucket}}/storageLayout", buckets.storage_layout, LIST, "How a bucket is laid out"),
    _route("GET", f"{B}/{{bucket}}/managedFolders", buckets.managed_folders, LIST, "Managed folders: none"),
    _route("GET", OBJECTS, objects.list_objects, LIST, "List objects by prefix and delimiter"),
    _route("GET", ONE, objects.get, GET, "An object, or with alt=media its bytes", ANY_TYPE),
    _route("PATCH", ONE, objects.patch, UPDATE, "Change an object's metadata"),
    _route("PUT", ONE, objects.patch, UPDATE, "Replace an object's metadata"),
    _route("DELETE", ONE, objects.delete, DELETE, "Delete an object", NOTHING),
    _route("POST", f"{ONE}/compose", objects.compose, CREATE, "Join objects into one"),
    _route("POST", f"{ONE}/copyTo/b/{{target_bucket}}/o/{{target}}", objects.copy_to, GET, "Copy an object"),
    _route("POST", f"{ONE}/rewriteTo/b/{{target_bucket}}/o/{{target}}", objects.rewrite_to, GET, "Copy an object"),
    _route("POST", f"{ONE}/moveTo/o/{{target}}", objects.move_to, GET, "Rename an object"),
]
"""Routes that a batch may contain."""

ROUTES: list[Route] = [
    *METADATA,
    Route(
        "POST",
        "/batch/storage/v1",
        batch_over(METADATA),
        SIGNED_IN,
        "Several calls about metadata in one request",
        query=None,
        errors="StorageError",
        body_bytes=MAX_BODY_BYTES,
    ),
    _route("GET", f"/download{ONE}", objects.get_media, GET, "The bytes of an object", ANY_TYPE),
    *(
        route
        for prefix in ("/upload", "/resumable/upload")
        for route in (
            _route("POST", f"{prefix}{OBJECTS}", uploads.insert, CREATE, "Upload an object, or begin an upload"),
            _route("PUT", f"{prefix}{OBJECTS}", uploads.put_chunk, CREATE, "Send the next bytes of a resumable upload"),
            _route("DELETE", f"{prefix}{OBJECTS}", uploads.cancel, CREATE, "Cancel a resumable upload"),
        )
    ),
    _xml("GET", "/{bucket}", xml.get, LIST, "List objects, in XML"),
    _xml("GET", "/{bucket}/{object=**}", xml.get, GET, "The bytes of an object"),
    _xml("PUT", "/{bucket}/{object=**}", xml.put, CREATE, "Store an object, copy one, or upload a part"),
    _xml("POST", "/{bucket}/{object=**}", xml.post, CREATE, "Begin or complete a multipart upload"),
    _xml("DELETE", "/{bucket}/{object=**}", xml.delete, DELETE, "Delete an object, or end a multipart upload"),
]
