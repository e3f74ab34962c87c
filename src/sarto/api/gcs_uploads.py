"""Bytes coming in over the storage JSON API: media, multipart and resumable uploads, streamed to the disk.

No body is ever held in memory; a torn one leaves nothing behind but, in a resumable session, what safely arrived.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from starlette.types import ASGIApp

from sarto.api.gcs_door import Call, checksums, conditions, object_json, read_fields, uploaded
from sarto.api.gcs_related import Related
from sarto.api.http import Reply, read_json, reply
from sarto.errors import InvalidArgument, NotFound, OutOfRange
from sarto.storage.buckets import ObjectFields, StoredObject
from sarto.storage.uploads import Appender, Upload, Uploads

_CONTENT_RANGE = re.compile(r"bytes (?:([0-9]{1,18})-([0-9]{1,18}|\*)|\*)/([0-9]{1,18}|\*)")


async def insert(call: Call) -> ASGIApp:
    kind = call.query.get("uploadType", "")
    if kind == "media":
        return reply(object_json(call, await _media(call)))
    if kind == "multipart":
        return reply(object_json(call, await _multipart(call)))
    if kind == "resumable":
        return await _begin(call)
    raise InvalidArgument('"uploadType" must be media, multipart or resumable')


async def _media(call: Call) -> StoredObject:
    """The body is the object; all there is to say about it is in the query and the headers."""
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
        wanted = conditions(call.query)
        return await call.run(call.buckets.store, call.bucket.name, name, content, fields, wanted, call.project)


async def _multipart(call: Call) -> StoredObject:
    related = Related(call.request.headers.get("content-type", ""))
    with await call.run(call.buckets.spool, call.bucket.name) as spool:
        async for block in uploaded(call):
            data = related.feed(block)
            if data:
                await call.run(spool.write, data)
        related.close()
        fields, name = _stated(related.resource, related.content_type), _name(call, related.resource)
        content = await call.run(spool.finish)
        checksums(related.resource, call.request.headers).check(content)
        wanted = conditions(call.query)
        return await call.run(call.buckets.store, call.bucket.name, name, content, fields, wanted, call.project)


async def _begin(call: Call) -> ASGIApp:
    """Opens a session; its address is the answer's Location."""
    body = await read_json(call.request)
    headers = call.request.headers
    fields = _stated(body, headers.get("x-upload-content-type", ""))
    uploads, wanted, said = Uploads(call.buckets), conditions(call.query), checksums(body, headers)
    name = _name(call, body)
    await call.run(_refuse_early, call, name)
    upload = await call.run(uploads.begin, "resumable", call.bucket.name, name, call.project, fields, wanted, said)
    where = f"{call.address}{call.request.url.path}?uploadType=resumable&upload_id={upload.id}"
    return Reply(headers=[(b"location", where.encode()), (b"x-guploader-uploadid", upload.id.encode())])


def _refuse_early(call: Call, name: str) -> None:
    """A condition that fails already need not wait for the bytes. It is checked again when they are here."""
    try:
        found = call.buckets.stat(call.bucket.name, name, project=call.project)
    except NotFound:
        conditions(call.query).check(None)
    else:
        conditions(call.query).check(found)


async def put_chunk(call: Call) -> ASGIApp:
    """The next bytes of a session, or with `bytes */N` the question how many there are."""
    uploads = Uploads(call.buckets)
    upload = await call.run(uploads.find, "resumable", call.query.get("upload_id", ""), call.project)
    if isinstance(upload, StoredObject):
        await _drain(call)
        return reply(object_json(call, upload))
    first, end, total = _content_range(call.request.headers.get("content-range"))
    if first is None:
        await _drain(call)
        received = await call.run(uploads.received, upload)
        if received != total:
            return _more(received)
    stored, received = await _append(call, uploads, upload, first, end, total)
    return reply(object_json(call, stored)) if stored is not None else _more(received)


async def _append(
    call: Call, uploads: Uploads, upload: Upload, first: int | None, end: int | None, total: int | None
) -> tuple[StoredObject | None, int]:
    """Write what is new of bytes `first` to `end`; the object once all `total` bytes (None: unknown) are here."""
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


async def _write(call: Call, appender: Appender, known: int, end: int | None) -> None:
    """The body behind its first `known` bytes, which are here already. Raises OutOfRange if it is too long."""
    async for block in uploaded(call, appender.size - known):
        skipped = min(known, len(block))
        known -= skipped
        fresh = block[skipped:]
        if end is not None and appender.size + len(fresh) > end:
            raise OutOfRange("the body is longer than its Content-Range says")
        if fresh:
            await call.run(appender.write, fresh)


async def cancel(call: Call) -> ASGIApp:
    """Ends a session and forgets its bytes; 499, as the original answers."""
    uploads = Uploads(call.buckets)
    upload = await call.run(uploads.find, "resumable", call.query.get("upload_id", ""), call.project)
    if isinstance(upload, Upload):
        await call.run(uploads.cancel, upload)
    return Reply(status=499)


def _more(received: int) -> Reply:
    """308: send what is behind these bytes."""
    headers = [(b"range", f"bytes=0-{received - 1}".encode())] if received else []
    return Reply(status=308, headers=headers)


async def _drain(call: Call) -> None:
    async for _ in call.request.stream():
        pass


def _content_range(header: str | None) -> tuple[int | None, int | None, int | None]:
    """(first byte, one behind the last, total). No header: all there is, from 0; `bytes */N`, a question: no first."""
    if header is None:
        return 0, None, None
    match = _CONTENT_RANGE.fullmatch(header.strip())
    if match is None:
        raise InvalidArgument(f'Content-Range "{header[:80]}" is not of the form "bytes FIRST-LAST/TOTAL"')
    first, last, whole = match.groups()
    total = None if whole == "*" else int(whole)
    if first is None:
        return None, None, total
    if last == "*":  # up to wherever the body ends
        return int(first), None, total
    if int(last) < int(first) or (total is not None and int(last) >= total):
        raise InvalidArgument(f'Content-Range "{header[:80]}" contradicts itself')
    return int(first), int(last) + 1, total


def _stated(resource: Any, content_type: str) -> ObjectFields:
    """The fields a sender states; the resource's content type goes before that of the part or header."""
    fields = read_fields(resource)
    stated = resource.get("contentType") or content_type
    return replace(fields, content_type=stated or fields.content_type)


def _name(call: Call, resource: Any) -> str:
    name = call.query.get("name") or (resource.get("name") if isinstance(resource, dict) else None)
    if not isinstance(name, str) or not name:
        raise InvalidArgument('the object needs a name: "name" in the query or in the resource')
    return name
