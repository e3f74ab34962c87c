"""The XML API at `/BUCKET/OBJECT`: listing, upload, download, copies and multipart uploads.

It uses the same buckets as the JSON API. Conditions and metadata are headers here.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from functools import partial
from urllib.parse import quote, unquote
from xml.etree import ElementTree
from xml.sax.saxutils import escape

from starlette.types import ASGIApp

from sarto.api.gcs.bucket_call import BucketCall, checksums, conditions, moment, number, opened, uploaded, xml
from sarto.api.gcs.download import download, etag, object_headers
from sarto.api.http.requests import beside, read_body
from sarto.api.http.responses import Reply
from sarto.errors import ConditionNotMet, InvalidArgument, NotFound, Unimplemented
from sarto.storage.buckets.store import Conditions, ObjectFields, StoredObject
from sarto.storage.buckets.uploads import Upload, Uploads

MAX_PART_LIST_BYTES = 2 << 20
NAMESPACE = "http://s3.amazonaws.com/doc/2006-03-01/"
_HEADER_FIELDS = {
    "content-type": "content_type", "content-encoding": "content_encoding", "content-language": "content_language",
    "content-disposition": "content_disposition", "cache-control": "cache_control", "x-goog-custom-time": "custom_time",
    "x-goog-storage-class": "storage_class",
}  # fmt: skip
_META = "x-goog-meta-"
PARAMETERS = frozenset(
    "uploads uploadId partNumber generation list-type prefix delimiter max-keys continuation-token start-after "
    "encoding-type fetch-owner userProject alt x-id".split()
)


async def get(call: BucketCall) -> ASGIApp:
    _refuse_subresources(call)
    if not call.name:
        return await _list(call)
    if "uploadId" in call.query:
        raise Unimplemented("Listing the parts of an upload is not supported.")
    stored = await call.stat()
    _conditions(call).check(stored)
    tags = call.request.headers
    if tags.get("if-match", etag(stored)) not in (etag(stored), "*"):
        raise ConditionNotMet("At least one of the pre-conditions you specified did not hold: If-Match.")
    if tags.get("if-none-match") in (etag(stored), "*"):
        return Reply(status=304)
    return await download(call, stored)


async def _list(call: BucketCall) -> ASGIApp:
    if call.request.method == "HEAD":
        return Reply(content_type=b"application/xml")
    values = call.query
    if values.get("list-type") != "2":
        raise Unimplemented("Only version 2 of listing is supported: list-type=2.")
    after = values.get("start-after", "")
    page = await call.run(
        call.buckets.list,
        call.bucket.name,
        values.get("prefix", ""),
        values.get("delimiter", ""),
        f"{after} " if after else "",  # the smallest allowed name after it
        max(1, min(number(values, "max-keys") or 1000, 1000)),
        page_token=values.get("continuation-token", ""),
        project=call.project,
    )
    written = quote if values.get("encoding-type") == "url" else escape
    rows = [
        f"<Contents><Key>{written(one.name)}</Key><Generation>{one.generation}</Generation>"
        f"<MetaGeneration>{one.metageneration}</MetaGeneration><LastModified>{moment(one.update_time)}</LastModified>"
        f"<ETag>{escape(etag(one))}</ETag><Size>{one.size}</Size><StorageClass>STANDARD</StorageClass></Contents>"
        for one in page.objects
    ]
    rows += [f"<CommonPrefixes><Prefix>{written(prefix)}</Prefix></CommonPrefixes>" for prefix in page.prefixes]
    token = page.next_token
    next_token = f"<NextContinuationToken>{token}</NextContinuationToken>" if token else ""
    return xml(
        f'<ListBucketResult xmlns="{NAMESPACE}"><Name>{call.bucket.name}</Name>'
        f"<Prefix>{written(values.get('prefix', ''))}</Prefix><KeyCount>{len(rows)}</KeyCount>"
        f"<IsTruncated>{'true' if token else 'false'}</IsTruncated>{next_token}{''.join(rows)}"
        "</ListBucketResult>"
    )


async def put(call: BucketCall) -> ASGIApp:
    _refuse_subresources(call)
    if not call.name:
        raise Unimplemented("Create buckets through the JSON API: POST /storage/v1/b.")
    if "uploadId" in call.query:
        return await _put_part(call)
    if "x-goog-copy-source" in call.request.headers:
        return await _copy(call)
    with await call.run(call.buckets.spool, call.bucket.name) as spool:
        async for block in uploaded(call):
            await call.run(spool.write, block)
        content = await call.run(spool.finish)
        checksums({}, call.request.headers).check(content)
        fields, preconditions = _fields(call.request.headers), await call.writing(_conditions(call))
        stored = await call.run(
            call.buckets.store, call.bucket.name, call.name, content, fields, preconditions, call.project
        )
    return _stored(stored)


async def _copy(call: BucketCall) -> ASGIApp:
    headers = call.request.headers
    bucket, _, name = unquote(headers["x-goog-copy-source"]).lstrip("/").partition("/")
    owner = await call.run(opened, call.request, bucket, "storage.objects.get", name)
    generation = number(headers, "x-goog-copy-source-generation")
    source = await call.run(call.buckets.stat, bucket, name, generation, owner.project)
    fields = _fields(headers) if headers.get("x-goog-metadata-directive", "").upper() == "REPLACE" else None
    preconditions = await call.writing(_conditions(call))
    stored = await call.run(call.buckets.copy, source, call.bucket.name, call.name, fields, preconditions, call.project)
    when = moment(stored.update_time)
    tag = escape(etag(stored))
    return xml(f"<CopyObjectResult><LastModified>{when}</LastModified><ETag>{tag}</ETag></CopyObjectResult>")


async def delete(call: BucketCall) -> ASGIApp:
    _refuse_subresources(call)
    if "uploadId" in call.query:
        uploads, upload = await _upload(call)
        await call.run(uploads.cancel, upload)
        return Reply(status=204)
    if not call.name:
        raise Unimplemented("Delete buckets through the JSON API: DELETE /storage/v1/b/BUCKET.")
    generation = number(call.query, "generation")
    await call.run(call.buckets.delete, call.bucket.name, call.name, generation, _conditions(call), call.project)
    return Reply(status=204)


# Multipart uploads


async def post(call: BucketCall) -> ASGIApp:
    """`?uploads` starts a multipart upload, `?uploadId=` completes it."""
    if "uploadId" in call.query:
        return await _complete(call)
    if "uploads" not in call.query or not call.name:
        raise Unimplemented("POST begins (?uploads) or completes (?uploadId=) a multipart upload; nothing else.")
    headers = call.request.headers
    fields, preconditions, stated = _fields(headers), await call.writing(_conditions(call)), checksums({}, headers)
    uploads = Uploads(call.buckets)
    upload = await call.run(
        uploads.begin,
        "multipart",
        call.bucket.name,
        call.name,
        call.project,
        fields,
        preconditions,
        stated,
        call.member,
    )
    return xml(
        f'<InitiateMultipartUploadResult xmlns="{NAMESPACE}"><Bucket>{upload.bucket}</Bucket>'
        f"<Key>{escape(upload.name)}</Key><UploadId>{upload.id}</UploadId></InitiateMultipartUploadResult>"
    )


async def _put_part(call: BucketCall) -> ASGIApp:
    uploads, upload = await _upload(call)
    part = number(call.query, "partNumber")
    if part is None:
        raise InvalidArgument('"partNumber" is missing.')
    with await call.run(uploads.part_spool, upload) as spool:
        async for block in uploaded(call):
            await call.run(spool.write, block)
        content = await call.run(spool.finish)
        checksums({}, call.request.headers).check(content)
        tag = base64.b64decode(content.md5).hex()
        await call.run(uploads.put_part, upload, part, content.spooled, tag)
    hashes = f"crc32c={content.crc32c},md5={content.md5}"
    return Reply(headers=[(b"etag", f'"{tag}"'.encode()), (b"x-goog-hash", hashes.encode())])


async def _complete(call: BucketCall) -> ASGIApp:
    uploads, upload = await _upload(call)
    body = await read_body(call.request, MAX_PART_LIST_BYTES)
    parts = await beside(call.request, partial(_parts, body))
    preconditions = _conditions(call)
    preconditions = await call.writing(upload.conditions if preconditions == Conditions() else preconditions)
    stored = await call.run(uploads.complete, upload, parts, preconditions)
    return xml(
        f'<CompleteMultipartUploadResult xmlns="{NAMESPACE}"><Bucket>{stored.bucket}</Bucket>'
        f"<Key>{escape(stored.name)}</Key><ETag>{escape(etag(stored))}</ETag></CompleteMultipartUploadResult>"
    )


async def _upload(call: BucketCall) -> tuple[Uploads, Upload]:
    uploads = Uploads(call.buckets)
    session = call.query["uploadId"]
    upload = await call.run(uploads.find, "multipart", session, call.project, call.bucket.name, call.member)
    if not isinstance(upload, Upload) or upload.name != call.name:
        raise NotFound("The requested upload was not found.")
    return uploads, upload


def _parts(body: bytes) -> list[tuple[int, str]]:
    """(number, tag in hex) of each part in a CompleteMultipartUpload."""
    try:
        if b"<!" in body:  # no document types: nothing in this message needs one
            raise ValueError("it holds a declaration")
        root = ElementTree.fromstring(body)
        parts = []
        for part in root:
            texts = {child.tag.rpartition("}")[2]: (child.text or "").strip() for child in part}
            number_text, tag = texts["PartNumber"], texts["ETag"].strip('"').lower()
            if not re.fullmatch("[0-9]{1,5}", number_text) or not re.fullmatch("[0-9a-f]{32}", tag):
                raise ValueError(f"part {number_text[:9]} or its tag is not valid")
            parts.append((int(number_text), tag))
    except (ElementTree.ParseError, ValueError, KeyError) as error:
        raise InvalidArgument(f"The list of parts cannot be read: {error}") from None
    return parts


# Headers and parameters


def _refuse_subresources(call: BucketCall) -> None:
    """Refuse `?acl`, `?compose` and the like, which address something other than the object."""
    for name in call.query.keys() - PARAMETERS:
        raise Unimplemented(f'The XML API does not support "?{name[:80]}"; the JSON API may have it.')


def _conditions(call: BucketCall) -> Conditions:
    """From `x-goog-if-generation-match` and the like; `If-None-Match: *` on a write means: only if new."""
    names = {
        "x-goog-if-generation-match": "ifGenerationMatch",
        "x-goog-if-generation-not-match": "ifGenerationNotMatch",
        "x-goog-if-metageneration-match": "ifMetagenerationMatch",
        "x-goog-if-metageneration-not-match": "ifMetagenerationNotMatch",
    }
    headers = call.request.headers
    values = {names[name]: headers[name] for name in names if name in headers}
    if call.request.method == "PUT" and headers.get("if-none-match") == "*":
        values.setdefault("ifGenerationMatch", "0")
    return conditions(values)


def _fields(headers: Mapping[str, str]) -> ObjectFields:
    stated = {field: headers[name] for name, field in _HEADER_FIELDS.items() if headers.get(name)}
    metadata = {name[len(_META) :]: value for name, value in headers.items() if name.startswith(_META)}
    return ObjectFields(metadata=metadata, **stated)


def _stored(stored: StoredObject) -> Reply:
    names = ("etag", "x-goog-generation", "x-goog-metageneration", "x-goog-hash", "x-goog-stored-content-length")
    headers = object_headers(stored)
    return Reply(content_type=b"text/html", headers=[(name.encode(), headers[name].encode()) for name in names])
