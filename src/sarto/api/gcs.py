"""The storage API over the embedded buckets: every URL of it, JSON and XML, in one list.

Read `gcs_door` first, then `gcs_objects` and `gcs_uploads`. Part of the route table of the service.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from starlette.types import ASGIApp

from sarto.api import gcs_buckets, gcs_objects, gcs_uploads, gcs_xml
from sarto.api.gcs_batch import batch_over
from sarto.api.gcs_door import Call, door, json_failure, xml_failure
from sarto.api.openapi import ANY_TYPE, NOTHING, XML_ERRORS
from sarto.api.routing import SIGNED_IN, Handler, Route

B = "/storage/v1/b"
OBJECTS = f"{B}/{{bucket}}/o"
ONE = f"{OBJECTS}/{{object}}"


def _route(
    method: str,
    path: str,
    handler: Callable[[Call], Awaitable[ASGIApp]],
    permission: str,
    summary: str,
    response: str | None = None,
) -> Route:
    """A route to a bucket; its permission is asked for before the handler runs."""
    opened = door(handler, permission, json_failure)
    return Route(method, path, opened, permission, summary, response=response, query=None, errors="StorageError")


def _xml(method: str, path: str, handler: Callable[[Call], Awaitable[ASGIApp]], permission: str, summary: str) -> Route:
    response = NOTHING if method == "DELETE" else ANY_TYPE
    opened = door(handler, permission, xml_failure)
    return Route(method, path, opened, permission, summary, response=response, query=None, errors=XML_ERRORS)


def _own(method: str, path: str, handler: Handler, permission: str, summary: str) -> Route:
    """A route above the buckets, whose handler asks for the permission itself."""
    return Route(method, path, handler, permission, summary, query=None, errors="StorageError")


GET, LIST = "storage.objects.get", "storage.objects.list"
CREATE, UPDATE, DELETE = "storage.objects.create", "storage.objects.update", "storage.objects.delete"

METADATA: list[Route] = [
    _own("GET", B, gcs_buckets.list_, gcs_buckets.LIST, "List the buckets of a project"),
    _own("POST", B, gcs_buckets.create, gcs_buckets.CREATE, "Make a bucket"),
    _route("GET", f"{B}/{{bucket}}", gcs_buckets.get, "storage.buckets.get", "A bucket"),
    _route("PATCH", f"{B}/{{bucket}}", gcs_buckets.patch, "storage.buckets.update", "Change a bucket's labels"),
    _route("PUT", f"{B}/{{bucket}}", gcs_buckets.patch, "storage.buckets.update", "Replace a bucket's labels"),
    _route(
        "DELETE", f"{B}/{{bucket}}", gcs_buckets.delete, "storage.buckets.delete", "Delete an empty bucket", NOTHING
    ),
    _route("GET", f"{B}/{{bucket}}/storageLayout", gcs_buckets.storage_layout, LIST, "How a bucket is laid out"),
    _route("GET", f"{B}/{{bucket}}/managedFolders", gcs_buckets.managed_folders, LIST, "Managed folders: none"),
    _route("GET", OBJECTS, gcs_objects.list_, LIST, "List objects by prefix and delimiter"),
    _route("GET", ONE, gcs_objects.get, GET, "An object, or with alt=media its bytes", ANY_TYPE),
    _route("PATCH", ONE, gcs_objects.patch, UPDATE, "Change an object's metadata"),
    _route("PUT", ONE, gcs_objects.patch, UPDATE, "Replace an object's metadata"),
    _route("DELETE", ONE, gcs_objects.delete, DELETE, "Delete an object", NOTHING),
    _route("POST", f"{ONE}/compose", gcs_objects.compose, CREATE, "Join objects into one"),
    _route("POST", f"{ONE}/copyTo/b/{{target_bucket}}/o/{{target}}", gcs_objects.copy_to, GET, "Copy an object"),
    _route("POST", f"{ONE}/rewriteTo/b/{{target_bucket}}/o/{{target}}", gcs_objects.rewrite_to, GET, "Copy an object"),
    _route("POST", f"{ONE}/moveTo/o/{{target}}", gcs_objects.move_to, GET, "Rename an object"),
]
"""What may stand in a batch."""

ROUTES: list[Route] = [
    *METADATA,
    _own("POST", "/batch/storage/v1", batch_over(METADATA), SIGNED_IN, "Many calls about metadata in one"),
    _route("GET", f"/download{ONE}", gcs_objects.get_media, GET, "The bytes of an object", ANY_TYPE),
    *(
        route
        for prefix in ("/upload", "/resumable/upload")
        for route in (
            _route("POST", f"{prefix}{OBJECTS}", gcs_uploads.insert, CREATE, "Upload an object, or begin to"),
            _route("PUT", f"{prefix}{OBJECTS}", gcs_uploads.put_chunk, CREATE, "The next bytes of a resumable upload"),
            _route("DELETE", f"{prefix}{OBJECTS}", gcs_uploads.cancel, CREATE, "Cancel a resumable upload"),
        )
    ),
    _xml("GET", "/{bucket}", gcs_xml.get, LIST, "List objects, in XML"),
    _xml("GET", "/{bucket}/{object=**}", gcs_xml.get, GET, "The bytes of an object"),
    _xml("PUT", "/{bucket}/{object=**}", gcs_xml.put, CREATE, "Store an object, copy one, or upload a part"),
    _xml("POST", "/{bucket}/{object=**}", gcs_xml.post, CREATE, "Begin or complete a multipart upload"),
    _xml("DELETE", "/{bucket}/{object=**}", gcs_xml.delete, DELETE, "Delete an object, or end a multipart upload"),
]
