"""OpenAI's uploads in parts: sessions of the buckets, whose parts are named when they arrive and ordered at the end."""

from __future__ import annotations

import re
import secrets
from typing import Any

from starlette.requests import Request
from starlette.types import ASGIApp

from sarto.api.gcs.bucket_call import BucketCall, uploaded
from sarto.api.http.requests import read_json
from sarto.api.http.responses import reply
from sarto.api.http.routing import Route
from sarto.api.http.services import services
from sarto.api.openai import stored_files
from sarto.api.openai.errors import ERRORS, in_openai_form, refusal
from sarto.api.openai.form_data import FormReader
from sarto.api.openai.place import ROOTS
from sarto.api.openai.reading import json_object, text_of
from sarto.api.openai.stored_files import WRITE, file_json, opened
from sarto.errors import InvalidArgument, NotFound
from sarto.storage.buckets.store import StoredObject
from sarto.storage.buckets.uploads import SESSION_SECONDS, Upload, Uploads

MOST_PART_BYTES = 64 << 20
UPLOAD_ID = re.compile(r"upload_([0-9a-f]{48})")
PART_ID = re.compile(r"part_([0-9a-f]{32})")
_SIZE = "openai-bytes"


@in_openai_form
async def begin(request: Request) -> ASGIApp:
    call = await opened(request, WRITE)
    body = json_object(await read_json(request), ("bytes", "filename", "mime_type", "purpose", "expires_after"))
    if body.get("expires_after") is not None:
        raise InvalidArgument.field("expires_after", "Files do not expire here; delete the file when it is used.")
    size, most = body.get("bytes"), services(request).control.limits.max_upload_bytes
    if type(size) is not int or not 1 <= size <= most:
        raise InvalidArgument.field("bytes", f"Give the size of the whole file, from 1 to {most:,} bytes.")
    purpose = stored_files.check_purpose(body.get("purpose"))
    name, fields = stored_files.new_object(text_of(body, "filename"), purpose, {_SIZE: str(size)})
    text_of(body, "mime_type")
    uploads, member = Uploads(call.buckets), call.member
    upload = await call.run(uploads.begin, "multipart", call.bucket.name, name, call.project, fields, member=member)
    return reply(_upload_json(upload, "pending"))


@in_openai_form
async def add_part(request: Request) -> ASGIApp:
    call = await opened(request, WRITE)
    uploads = Uploads(call.buckets)
    upload = await _open_upload(call, uploads)
    reader = FormReader(request.headers.get("content-type", ""), "data")
    size, part = 0, secrets.token_hex(16)
    with await call.run(uploads.part_spool, upload) as spool:
        async for block in uploaded(call):
            if data := reader.feed(block):
                size += len(data)
                if size > MOST_PART_BYTES:
                    raise InvalidArgument.field("data", f"A part has at most {MOST_PART_BYTES >> 20} MiB.")
                await call.run(spool.write, data)
        reader.close()
        finished = await call.run(spool.finish)
        await call.run(uploads.keep_part, upload, part, finished.spooled)
    made = {"id": f"part_{part}", "object": "upload.part", "upload_id": f"upload_{upload.id}"}
    return reply(made | {"created_at": _created(upload)})


@in_openai_form
async def complete(request: Request) -> ASGIApp:
    call = await opened(request, WRITE)
    uploads = Uploads(call.buckets)
    upload = await _open_upload(call, uploads)
    body = json_object(await read_json(request), ("part_ids", "md5"))
    named = body.get("part_ids")
    if not isinstance(named, list) or not named:
        raise InvalidArgument.field("part_ids", "List the ids of the parts, in the order of the file.")
    matches = [PART_ID.fullmatch(one) if isinstance(one, str) else None for one in named]
    parts = [match[1] for match in matches if match]
    if len(parts) != len(named) or len(set(parts)) != len(parts):
        raise InvalidArgument.field("part_ids", "Each is an id such as part_…, once.")
    size = await call.run(uploads.size_of, upload, parts)
    if size is None:
        raise InvalidArgument.field("part_ids", "One of the parts was not uploaded to this upload.")
    stated = int(upload.fields.metadata.get(_SIZE, "-1"))
    if size != stated:
        raise InvalidArgument.field("part_ids", f"The parts have {size:,} bytes together; the upload has {stated:,}.")
    stored = await call.run(uploads.join, upload, parts, await call.writing())
    return reply(_upload_json(upload, "completed") | {"file": file_json(stored)})


@in_openai_form
async def cancel(request: Request) -> ASGIApp:
    call = await opened(request, WRITE)
    uploads = Uploads(call.buckets)
    upload = await _open_upload(call, uploads)
    await call.run(uploads.cancel, upload)
    return reply(_upload_json(upload, "cancelled"))


async def _open_upload(call: BucketCall, uploads: Uploads) -> Upload:
    """The upload of the path, if the caller began it and it is open. Raises NotFound, InvalidArgument."""
    named = call.request.path_params["upload"]
    match = UPLOAD_ID.fullmatch(named)
    if match is None:
        raise NotFound(f'No such upload: "{named[:100]}".')
    upload = await call.run(uploads.find, "multipart", match[1], call.project, call.bucket.name, call.member)
    if isinstance(upload, StoredObject):
        raise InvalidArgument.field("upload_id", "The upload is completed already.")
    return upload


def _upload_json(upload: Upload, status: str) -> dict[str, Any]:
    created = _created(upload)
    return {
        "id": f"upload_{upload.id}",
        "object": "upload",
        "bytes": int(upload.fields.metadata.get(_SIZE, "0")),
        "created_at": created,
        "expires_at": created + int(SESSION_SECONDS),
        "filename": stored_files.shown_name(upload.fields),
        "purpose": stored_files.purpose_in(upload.fields),
        "status": status,
        "file": None,
    }


def _created(upload: Upload) -> int:
    """Seconds since 1970, from the number in the object's name."""
    return int(upload.name[len(stored_files.PREFIX) :][:16]) // 1_000_000


JSON = {"type": "object"}
ROUTES = [
    Route("POST", f"{root}{path}", handler, WRITE, summary, body, query=None, errors=ERRORS, refusal=refusal)
    for root in ROOTS
    for path, handler, summary, body in (
        ("/uploads", begin, "Begin an upload in parts", JSON),
        ("/uploads/{upload}/parts", add_part, "Upload a part", "multipart/form-data"),
        ("/uploads/{upload}/complete", complete, "Make the parts a file", JSON),
        ("/uploads/{upload}/cancel", cancel, "End an upload without a file", None),
    )
]
