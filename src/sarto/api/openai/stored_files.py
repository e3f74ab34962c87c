"""Files of OpenAI's API as objects of the project's own bucket: their names, ids, purposes and JSON.

A file `file-N` is the object `file-N/NAME`; its purpose and name are in the object's metadata. N grows with time.
"""

from __future__ import annotations

import re
from typing import Any

from starlette.requests import Request

from sarto.api.gcs.bucket_call import BucketCall
from sarto.api.http.services import in_thread, principal, services
from sarto.api.openai.place import place_of
from sarto.control.access import authorization, projects
from sarto.control.context import Control
from sarto.control.models import model_bucket
from sarto.errors import InvalidArgument, NotFound
from sarto.names import new_id
from sarto.storage.buckets.store import ObjectFields, StoredObject

FINE_TUNE = "fine-tune"
PURPOSES = (FINE_TUNE, "user_data", "evals")
OTHER_PURPOSES = ("assistants", "batch", "vision")
PREFIX = "file-"
FILE_ID = re.compile(r"file-[0-9]{19}")
NAME_BYTES = 200
READ, LIST = "storage.objects.get", "storage.objects.list"
WRITE, REMOVE = "storage.objects.create", "storage.objects.delete"
_PURPOSE, _NAME = "openai-purpose", "openai-filename"


async def opened(request: Request, permission: str, about: str = "") -> BucketCall:
    """A call on the bucket of files, for a caller with the permission on it. Raises PermissionDenied, and NotFound
    before the first file."""
    number = await checked(request, permission, about)
    return await in_thread(request, _opened, request, number, permission == WRITE)


async def checked(request: Request, permission: str, about: str = "") -> str:
    """The number of the request's project, for a caller with the permission on its bucket of files. Raises
    PermissionDenied, the same for another's project and a missing one."""
    return await in_thread(request, _checked, request, permission, about)


def _checked(request: Request, permission: str, about: str) -> str:
    served, caller, place = services(request), principal(request), place_of(request)
    # First on the project alone: the bucket's name would reveal the id of a foreign one.
    authorization.require_within(served.database, caller, permission, place.project)
    project = projects.find(served.database, place.project)
    assert project is not None, "the caller has a right in it"
    name = model_bucket.find_file_bucket(served.control, project.number)
    about = f"objects/{about[:100]}" if about else ""
    authorization.require(served.database, caller, permission, project.number, f"buckets/{name}", about)
    return project.number


def _opened(request: Request, number: str, makes: bool) -> BucketCall:
    served = services(request)
    name = (model_bucket.file_bucket if makes else model_bucket.find_file_bucket)(served.control, number)
    try:
        return BucketCall(request, served.buckets.bucket(name, number), served.buckets, {}, "")
    except NotFound:
        raise NotFound("This project has no files yet; upload one first.") from None


def check_purpose(purpose: object) -> str:
    if purpose in PURPOSES:
        return str(purpose)
    known = ", ".join(PURPOSES)
    if purpose in OTHER_PURPOSES:
        raise InvalidArgument.field("purpose", f'Files for "{purpose}" are not supported; the purposes are {known}.')
    raise InvalidArgument.field("purpose", f"Give one of {known}.")


def new_object(file_name: str, purpose: str, more: dict[str, str] | None = None) -> tuple[str, ObjectFields]:
    """The name and the properties of the object for a new file. Training reads JSON lines, so its objects end in
    `.jsonl` whatever the client calls the file."""
    shown = _clean(file_name) or "upload"
    stored = shown if purpose != FINE_TUNE or shown.endswith(".jsonl") else f"{shown}.jsonl"
    content_type = "application/jsonl" if stored.endswith(".jsonl") else "application/octet-stream"
    metadata = {_PURPOSE: purpose, _NAME: shown, **(more or {})}
    return f"{PREFIX}{new_id()}/{stored}", ObjectFields(content_type=content_type, metadata=metadata)


def _clean(file_name: str) -> str:
    """The last part of a path, printable and short."""
    last = re.split(r"[/\\]", file_name)[-1]
    kept = "".join(character for character in last if character.isprintable()).strip()
    return kept.encode("utf-8", "replace")[:NAME_BYTES].decode("utf-8", "ignore")


def find(control: Control, project: str, file_id: str) -> StoredObject:
    """The object of a file in the project with this number. Raises NotFound."""
    if FILE_ID.fullmatch(file_id):
        name = model_bucket.find_file_bucket(control, project)
        for stored in control.buckets.by_name(name, f"{file_id}/", limit=1):
            return stored
    raise NotFound(f'No such file: "{file_id[:100]}"; GET files lists those that exist.')


def purpose_of(stored: StoredObject) -> str:
    return purpose_in(stored.fields)


def purpose_in(fields: ObjectFields) -> str:
    return fields.metadata.get(_PURPOSE, "user_data")


def shown_name(fields: ObjectFields) -> str:
    return fields.metadata.get(_NAME, "")


def file_id(stored: StoredObject) -> str:
    return stored.name.partition("/")[0]


def id_of_uri(uri: str, bucket: str) -> str:
    """The id of the file with this URI, or the URI of any other object."""
    name = uri.removeprefix(f"gs://{bucket}/{PREFIX}")
    number = name.partition("/")[0]
    return f"{PREFIX}{number}" if name != uri and FILE_ID.fullmatch(f"{PREFIX}{number}") else uri


def file_json(stored: StoredObject) -> dict[str, Any]:
    name = shown_name(stored.fields) or stored.name.partition("/")[2]
    return described(file_id(stored), stored.size, stored.create_time, name, purpose_of(stored))


def described(identifier: str, size: int, created: float, name: str, purpose: str) -> dict[str, Any]:
    return {
        "id": identifier,
        "object": "file",
        "bytes": size,
        "created_at": int(created),
        "filename": name,
        "purpose": purpose,
        "status": "processed",
        "status_details": None,
        "expires_at": None,
    }
