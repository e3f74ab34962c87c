"""Downloads: a whole object or a range, streamed from the file.

A download that has begun ends with the same bytes, even when the object is replaced meanwhile.
"""

from __future__ import annotations

import asyncio
import re
import zlib
from collections.abc import AsyncIterator
from typing import BinaryIO

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from sarto.api.gcs.bucket_call import BucketCall, http_date
from sarto.api.http.responses import Reply
from sarto.api.http.services import in_thread
from sarto.storage.buckets.blobs import BLOCK
from sarto.storage.buckets.store import StoredObject

_RANGE = re.compile(r"bytes=([0-9]{0,19})-([0-9]{0,19})")
_GZIP = b"\x1f\x8b"


async def download(call: BucketCall, stored: StoredObject) -> ASGIApp:
    """200, 206 or 416. Bytes stored under gzip are decompressed for a client that does not accept gzip."""
    headers = object_headers(stored)
    file = await call.run(call.buckets.open, stored)
    if stored.fields.content_encoding == "gzip" and not _takes_gzip(call.request, stored) and _is_gzip(file):
        headers |= {"warning": "214 UploadServer gunzipped", "vary": "Accept-Encoding"}
        return Download(call.request, 200, headers, file, 0, None, unpack=True)
    if stored.fields.content_encoding:
        headers["content-encoding"] = stored.fields.content_encoding
    window = _window(call.request.headers.get("range", ""), stored.size)
    if window is None:
        return Download(call.request, 200, headers, file, 0, stored.size)
    first, end = window
    if first >= end:
        file.close()
        unsatisfiable = [(b"content-range", f"bytes */{stored.size}".encode())]
        message = b"The requested range cannot be satisfied."
        return Reply(message, 416, content_type=b"text/plain; charset=UTF-8", headers=unsatisfiable)
    headers["content-range"] = f"bytes {first}-{end - 1}/{stored.size}"
    return Download(call.request, 206, headers, file, first, end - first)


def object_headers(stored: StoredObject) -> dict[str, str]:
    fields = stored.fields
    headers = {
        "content-type": stored.content_type,
        "etag": etag(stored),
        "last-modified": http_date(stored.update_time),
        "accept-ranges": "bytes",
        "x-goog-generation": str(stored.generation),
        "x-goog-metageneration": str(stored.metageneration),
        "x-goog-hash": f"crc32c={stored.crc32c},md5={stored.md5}",
        "x-goog-stored-content-encoding": fields.content_encoding or "identity",
        "x-goog-stored-content-length": str(stored.size),
        "x-goog-storage-class": fields.storage_class,
        "content-disposition": fields.content_disposition,
        "content-language": fields.content_language,
        "cache-control": fields.cache_control or "no-cache",
    }
    headers |= {f"x-goog-meta-{key}": value for key, value in fields.metadata.items() if _is_header(key, value)}
    return {name: value for name, value in headers.items() if value}


def etag(stored: StoredObject) -> str:
    """An etag that differs for every version, even with equal bytes."""
    return f'"{stored.generation:x}-{stored.metageneration:x}"'


class Download:
    """Streams `size` bytes of `file` from `first` on (None: to its end), and always closes it."""

    def __init__(
        self,
        request: Request,
        status: int,
        headers: dict[str, str],
        file: BinaryIO,
        first: int,
        size: int | None,
        *,
        unpack: bool = False,
    ) -> None:
        self.request, self.status, self.headers, self.file = request, status, headers, file
        self.first, self.size, self.unpack = first, size, unpack

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            raw = [(name.encode(), value.encode("latin-1", "replace")) for name, value in self.headers.items()]
            if self.size is not None:
                raw.append((b"content-length", str(self.size).encode()))
            await send({"type": "http.response.start", "status": self.status, "headers": raw})
            if scope["method"] != "HEAD":
                async for block in self._unpacked() if self.unpack else self._read():
                    await send({"type": "http.response.body", "body": block, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            self.file.close()

    async def _read(self) -> AsyncIterator[bytes]:
        self.file.seek(self.first)
        left = self.size
        while left is None or left > 0:
            block = await in_thread(self.request, self.file.read, BLOCK if left is None else min(BLOCK, left))
            if not block:
                return
            left = None if left is None else left - len(block)
            yield block

    async def _unpacked(self) -> AsyncIterator[bytes]:
        """Decompressed blocks, at most one in memory for any rate of expansion."""
        unpacker = zlib.decompressobj(31)
        async for block in self._read():
            while block:
                piece = await asyncio.to_thread(unpacker.decompress, block, BLOCK)
                if piece:
                    yield piece
                if unpacker.eof:
                    block, unpacker = unpacker.unused_data, zlib.decompressobj(31)
                else:
                    block = unpacker.unconsumed_tail


def _window(header: str, size: int) -> tuple[int, int] | None:
    """First byte and the end of the range; empty (first ≥ end) when outside; None without a single range."""
    match = _RANGE.fullmatch(header.replace(" ", ""))
    if match is None or match.groups() == ("", ""):
        return None
    first, last = match.groups()
    if not first:
        length = min(int(last), size)
        return (size - length, size) if length else (size, size)
    if last and int(last) < int(first):
        return None
    return int(first), min(int(last) + 1, size) if last else size


def _takes_gzip(request: Request, stored: StoredObject) -> bool:
    return "gzip" in request.headers.get("accept-encoding", "") or "no-transform" in stored.fields.cache_control


def _is_gzip(file: BinaryIO) -> bool:
    head = file.read(2)
    file.seek(0)
    return head == _GZIP


def _is_header(key: str, value: str) -> bool:
    """Whether custom metadata can be sent as a header; the JSON resource always has it."""
    return key.isascii() and key.replace("-", "").replace("_", "").isalnum() and value.isascii()
