"""Objects over the storage JSON API, except uploads: get, list, change, delete, copy, compose, download."""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.types import ASGIApp

from sarto.api.gcs.bucket_call import BucketCall, conditions, flag, number, object_json, opened, read_fields, writing
from sarto.api.gcs.download import download
from sarto.api.http.requests import read_json
from sarto.api.http.responses import Reply, reply
from sarto.errors import ConditionNotMet, InvalidArgument
from sarto.storage.buckets.store import ObjectFields, StoredObject

MAX_COMPOSED = 32
READ, WRITE, REMOVE = "storage.objects.get", "storage.objects.create", "storage.objects.delete"


async def list_objects(call: BucketCall) -> ASGIApp:
    values = call.query
    page = await call.run(
        call.buckets.list,
        call.bucket.name,
        values.get("prefix", ""),
        values.get("delimiter", ""),
        values.get("startOffset", ""),
        max(1, min(number(values, "maxResults") or 1000, 1000)),
        end=values.get("endOffset", ""),
        page_token=values.get("pageToken", ""),
        include_trailing_delimiter=flag(values, "includeTrailingDelimiter"),
        project=call.project,
    )
    written: dict[str, Any] = {"kind": "storage#objects"}
    items = [object_json(call, stored) for stored in page.objects]
    more = {"items": items, "prefixes": page.prefixes, "nextPageToken": page.next_token}
    return reply(written | {key: value for key, value in more.items() if value})


async def get(call: BucketCall) -> ASGIApp:
    stored = await call.stat()
    try:
        conditions(call.query).check(stored)
    except ConditionNotMet as error:
        if "NotMatch" in error.message:
            return Reply(status=304)
        raise
    if call.query.get("alt") == "media":
        return await download(call, stored)
    return reply(object_json(call, stored))


async def get_media(call: BucketCall) -> ASGIApp:
    stored = await call.stat()
    conditions(call.query).check(stored)
    return await download(call, stored)


async def patch(call: BucketCall) -> ASGIApp:
    body = await read_json(call.request)
    is_patch = call.request.method == "PATCH"

    def change(fields: ObjectFields) -> ObjectFields:
        return read_fields(body, fields if is_patch else ObjectFields())

    generation, preconditions = number(call.query, "generation"), conditions(call.query)
    changed = await call.run(
        call.buckets.update, call.bucket.name, call.name, change, generation, preconditions, call.project
    )
    return reply(object_json(call, changed))


async def delete(call: BucketCall) -> ASGIApp:
    generation = number(call.query, "generation")
    await call.run(call.buckets.delete, call.bucket.name, call.name, generation, conditions(call.query), call.project)
    return Reply(status=204)


async def copy_to(call: BucketCall) -> ASGIApp:
    """`POST …/o/SOURCE/copyTo/b/BUCKET/o/NAME`."""
    return reply(object_json(call, await _copy(call)))


async def rewrite_to(call: BucketCall) -> ASGIApp:
    """Like copyTo; always complete in one call for any size, since no byte is copied."""
    stored = await _copy(call)
    size = str(stored.size)
    done = {"kind": "storage#rewriteResponse", "totalBytesRewritten": size, "objectSize": size, "done": True}
    return reply(done | {"resource": object_json(call, stored)})


async def move_to(call: BucketCall) -> ASGIApp:
    """`POST …/o/SOURCE/moveTo/o/NAME`: a new name within the bucket, in one transaction."""
    await call.run(opened, call.request, call.bucket.name, REMOVE, call.name)
    return reply(object_json(call, await _copy(call, is_move=True)))


async def _copy(call: BucketCall, *, is_move: bool = False) -> StoredObject:
    target = call.request.path_params.get("target_bucket", call.bucket.name)
    name = call.request.path_params["target"]
    bucket = await call.run(opened, call.request, target, WRITE, name)
    source = await call.run(
        call.buckets.stat, call.bucket.name, call.name, number(call.query, "sourceGeneration"), call.project
    )
    conditions(call.query, "ifSource").check(source)
    body = await read_json(call.request)
    stated = read_fields(body, ObjectFields(content_type=source.content_type))
    fields = None if stated == ObjectFields(content_type=source.content_type) else stated
    preconditions = await call.run(writing, call.request, bucket, conditions(call.query))
    return await call.run(
        call.buckets.copy, source, target, name, fields, preconditions, bucket.project, is_move=is_move
    )


async def compose(call: BucketCall) -> ASGIApp:
    """Concatenate up to 32 objects of the bucket into one."""
    body = await read_json(call.request)
    named = body.get("sourceObjects") if isinstance(body, dict) else None
    if not isinstance(named, list) or not 1 <= len(named) <= MAX_COMPOSED:
        raise InvalidArgument(f'"sourceObjects" must list 1 to {MAX_COMPOSED} objects.')
    await call.run(opened, call.request, call.bucket.name, READ)
    sources = await asyncio.gather(*(_source(call, one) for one in named))
    destination = body.get("destination") or {}
    fields = read_fields(destination, ObjectFields(content_type=sources[0].content_type))
    stored = await call.run(
        call.buckets.compose, call.bucket.name, call.name, sources, fields, await call.writing(), call.project
    )
    if body.get("deleteSourceObjects") is True:
        await call.run(opened, call.request, call.bucket.name, REMOVE)
        for one in sources:
            if one.name != stored.name:
                await call.run(call.buckets.delete, one.bucket, one.name, one.generation, project=call.project)
    return reply(object_json(call, stored))


def _texts(values: dict[str, Any]) -> dict[str, str]:
    """Numbers in the form of a query; null is absent."""
    return {key: str(value) for key, value in values.items() if value is not None}


async def _source(call: BucketCall, named: Any) -> StoredObject:
    if not isinstance(named, dict) or not isinstance(named.get("name"), str):
        raise InvalidArgument('Each of "sourceObjects" needs a "name".')
    stated = named.get("objectPreconditions") or {}
    if not isinstance(stated, dict):
        raise InvalidArgument('"objectPreconditions" must be a JSON object.')
    preconditions, generation = _texts(stated), number(_texts(named), "generation")
    stored = await call.run(call.buckets.stat, call.bucket.name, named["name"], generation, call.project)
    conditions(preconditions).check(stored)
    return stored
