"""Uploads over the storage JSON API: media, multipart and resumable, streamed to the disk.

A body is never in memory as a whole. An interrupted upload leaves no file, except the received part of a resumable
session.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from starlette.types import ASGIApp

from sarto.api.gcs.bucket_call import BucketCall, checksums, object_json, read_fields, uploaded
from sarto.api.gcs.multipart_body import MultipartReader
from sarto.api.http.requests import read_json
from sarto.api.http.responses import Reply, reply
from sarto.errors import InvalidArgument, NotFound, OutOfRange
from sarto.storage.buckets.store import Conditions, ObjectFields, StoredObject
from sarto.storage.buckets.uploads import Appender, Upload, Uploads

_CONTENT_RANGE = re.compile(r"bytes (?:([0-9]{1,18})-([0-9]{1,18}|\*)|\*)/([0-9]{1,18}|\*)")


async def insert(call: BucketCall) -> ASGIApp:
    if "upload_id" in call.query:  # some clients send the bytes of a session by POST
        return await put_chunk(call)
    kind = call.query.get("uploadType", "")
    if kind == "media":
        return reply(object_json(call, await _media(call)))
    if kind == "multipart":
        return reply(object_json(call, await _multipart(call)))
    if kind == "resumable":
        return await _begin(call)
    raise InvalidArgument('"uploadType" must be media, multipart or resumable.')


async def _media(call: BucketCall) -> StoredObject:
    """The body is the object; its properties are in the query and the headers."""
    request = call.request
    fields = ObjectFields(
        content_type=request.headers.get("content-type") or ObjectFields().content_type,
        content_encoding=call.query.get("contentEncoding", ""),
    )
    name = _name(call, {})
    with await call.run(call.buckets.spool, call.bucket.name) as spool:
        async for block in uploaded(call):
            await call.run(spool.write, block)
        content = await call.run(spool.finish)
        checksums({}, request.headers).check(content)
        preconditions = await call.writing()
        return await call.run(call.buckets.store, call.bucket.name, name, content, fields, preconditions, call.project)


async def _multipart(call: BucketCall) -> StoredObject:
    related = MultipartReader(call.request.headers.get("content-type", ""))
    with await call.run(call.buckets.spool, call.bucket.name) as spool:
        async for block in uploaded(call):
            data = related.feed(block)
            if data:
                await call.run(spool.write, data)
        related.close()
        fields, name = _stated(related.resource, related.content_type), _name(call, related.resource)
        content = await call.run(spool.finish)
        checksums(related.resource, call.request.headers).check(content)
        preconditions = await call.writing()
        return await call.run(call.buckets.store, call.bucket.name, name, content, fields, preconditions, call.project)


async def _begin(call: BucketCall) -> ASGIApp:
    """Open a session; its address is the response's Location."""
    body = await read_json(call.request)
    headers = call.request.headers
    fields = _stated(body, headers.get("x-upload-content-type", ""))
    uploads, preconditions, stated = Uploads(call.buckets), await call.writing(), checksums(body, headers)
    name = _name(call, body)
    await call.run(_refuse_early, call, name, preconditions)
    upload = await call.run(
        uploads.begin, "resumable", call.bucket.name, name, call.project, fields, preconditions, stated, call.member
    )
    where = f"{call.address}{call.request.url.path}?uploadType=resumable&upload_id={upload.id}"
    return Reply(headers=[(b"location", where.encode()), (b"x-guploader-uploadid", upload.id.encode())])


def _refuse_early(call: BucketCall, name: str, preconditions: Conditions) -> None:
    """Check conditions before the bytes arrive. They are checked again afterwards."""
    try:
        stored = call.buckets.stat(call.bucket.name, name, project=call.project)
    except NotFound:
        preconditions.check(None)
    else:
        preconditions.check(stored)


async def put_chunk(call: BucketCall) -> ASGIApp:
    """Receive the next bytes of a session; `bytes */N` requests the number of received bytes."""
    uploads = Uploads(call.buckets)
    upload = await _find(call, uploads)
    if isinstance(upload, StoredObject):  # the client lost the last response and sends its bytes again
        await _drain(call)
        return reply(object_json(call, upload))
    upload = replace(upload, conditions=await call.writing(upload.conditions))
    first, end, total = _content_range(call.request.headers.get("content-range"))
    if first is None:
        await _drain(call)
        received = await call.run(uploads.received, upload)
        if received != total:
            return _more(received)
        # All bytes are here: `bytes */TOTAL` completes an upload whose last chunk had an unknown total.
    stored, received = await _append(call, uploads, upload, first, end, total)
    return reply(object_json(call, stored)) if stored is not None else _more(received)


async def _append(
    call: BucketCall, uploads: Uploads, upload: Upload, first: int | None, end: int | None, total: int | None
) -> tuple[StoredObject | None, int]:
    """Write the new bytes of `first` to `end`; returns the object once all `total` bytes (None: unknown) are
    received."""
    appender = await call.run(uploads.appender, upload)
    try:
        if first is not None:
            if first > appender.size:  # a gap: the client learns where we are
                await _drain(call)
                return None, appender.size
            await _write(call, appender, appender.size - first, total if end is None else end)
        is_last = first is None or (total is None and end is None) or appender.size == total
        return (await call.run(appender.finish) if is_last else None), appender.size
    finally:
        await call.run(appender.close)


async def _write(call: BucketCall, appender: Appender, known: int, end: int | None) -> None:
    """Write the body after its first `known` bytes, which were received before. Raises OutOfRange if it is too long."""
    # After a lost response a client sends bytes again from its last confirmed one; those received are skipped.
    async for block in uploaded(call, appender.size - known):
        skipped = min(known, len(block))
        known -= skipped
        fresh = block[skipped:]
        if end is not None and appender.size + len(fresh) > end:
            raise OutOfRange("The body is longer than its Content-Range.")
        if fresh:
            await call.run(appender.write, fresh)


async def cancel(call: BucketCall) -> ASGIApp:
    """End a session and delete its bytes; returns 499, as Google does."""
    uploads = Uploads(call.buckets)
    upload = await _find(call, uploads)
    if isinstance(upload, Upload):
        await call.run(uploads.cancel, upload)
    return Reply(status=499)


async def _find(call: BucketCall, uploads: Uploads) -> Upload | StoredObject:
    """The session of the query, if the caller began it in this bucket. Raises NotFound."""
    session = call.query.get("upload_id", "")
    return await call.run(uploads.find, "resumable", session, call.project, call.bucket.name, call.member)


def _more(received: int) -> Reply:
    """308: the client continues after these bytes."""
    headers = [(b"range", f"bytes=0-{received - 1}".encode())] if received else []
    return Reply(status=308, headers=headers)


async def _drain(call: BucketCall) -> None:
    async for _ in call.request.stream():
        pass


def _content_range(header: str | None) -> tuple[int | None, int | None, int | None]:
    """(first byte, end, total). Without the header: the whole body from 0; for `bytes */N`, a query: no first byte."""
    if header is None:
        return 0, None, None
    match = _CONTENT_RANGE.fullmatch(header.strip())
    if match is None:
        raise InvalidArgument(f'Content-Range "{header[:80]}" is not of the form "bytes FIRST-LAST/TOTAL".')
    first, last, whole = match.groups()
    total = None if whole == "*" else int(whole)
    if first is None:
        return None, None, total
    if last == "*":  # up to wherever the body ends
        return int(first), None, total
    if int(last) < int(first) or (total is not None and int(last) >= total):
        raise InvalidArgument(f'Content-Range "{header[:80]}" contradicts itself.')
    return int(first), int(last) + 1, total


def _stated(resource: Any, content_type: str) -> ObjectFields:
    """The sender's fields; the resource's content type has precedence over that of the part or header."""
    fields = read_fields(resource)
    stated = resource.get("contentType") or content_type
    return replace(fields, content_type=stated or fields.content_type)


def _name(call: BucketCall, resource: Any) -> str:
    name = call.query.get("name") or (resource.get("name") if isinstance(resource, dict) else None)
    if not isinstance(name, str) or not name:
        raise InvalidArgument('The object needs a name: "name" in the query or in the resource.')
    return name
