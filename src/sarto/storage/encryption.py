"""Sealed files: Tink's streaming AEAD under a fresh data key each, the data key wrapped by a customer key.

A sealed file is `MAGIC`, the length of its header, the header (JSON: the key's name and the wrapped data key) and the
stream. The path a file belongs to is authenticated with both, so that sealed files cannot be swapped. What was opened
is used only once its end was verified: until then it is a temporary file beside the target.
"""

from __future__ import annotations

import base64
import io
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO, Protocol, cast

import orjson
import tink
from tink import secret_key_access, streaming_aead

from sarto.errors import FailedPrecondition

MAGIC = b"SARTOSL1"
MOST_HEADER_BYTES = 64 * 1024
BLOCK = 1 << 20


class KeyUnusable(FailedPrecondition):
    """The key does nothing now, and may again: it is disabled, waits for its destruction, or is not reached."""


class Wrapper(Protocol):
    """A key service: wraps and opens small secrets under a key known by its resource name.

    Both raise KeyUnusable when the key cannot be used now, and FailedPrecondition when it never will be again.
    """

    def wrap(self, key: str, secret: bytes, context: bytes) -> bytes: ...

    def unwrap(self, key: str, wrapped: bytes, context: bytes) -> bytes: ...


def seal(wrapper: Wrapper, key: str, source: BinaryIO, target: BinaryIO, path: str) -> None:
    """Everything `source` holds, sealed under `key` and bound to `path`, into `target`, which stays open."""
    with sealing(wrapper, key, target, path) as stream:
        while block := source.read(BLOCK):
            stream.write(block)


def sealing(wrapper: Wrapper, key: str, target: BinaryIO, path: str) -> BinaryIO:
    """A stream: what is written to it arrives sealed at `target`, all of it once the stream is closed."""
    context = _context(path)
    _registered()
    handle = tink.new_keyset_handle(streaming_aead.streaming_aead_key_templates.AES256_GCM_HKDF_1MB)
    plain = tink.proto_keyset_format.serialize(handle, secret_key_access.TOKEN)
    header = orjson.dumps({"key": key, "wrapped": base64.b64encode(wrapper.wrap(key, plain, context)).decode()})
    target.write(MAGIC + len(header).to_bytes(4, "big") + header)
    return cast(BinaryIO, _primitive(handle).new_encrypting_stream(cast(Any, _Kept(target)), context))


def open_sealed(wrapper: Wrapper, source: BinaryIO, target: BinaryIO, path: str) -> None:
    """The plain bytes of a sealed file into `target`. What stands there is worth nothing if this raises.

    Raises FailedPrecondition for a key that cannot be used, and for a file that was changed, cut or moved.
    """
    key, wrapped = _header(source, path)
    context = _context(path)
    plain = wrapper.unwrap(key, wrapped, context)
    _registered()
    try:
        handle = tink.proto_keyset_format.parse(plain, secret_key_access.TOKEN)
        with _primitive(handle).new_decrypting_stream(cast(Any, _Kept(source)), context) as stream:
            while block := stream.read(BLOCK):
                target.write(block)
    except (tink.TinkError, OSError) as error:
        raise FailedPrecondition(f"{path} is not what was sealed: it was changed, cut short or moved") from error


def seal_file(wrapper: Wrapper, key: str, source: Path, target: Path, path: str) -> None:
    """A file sealed at `target`, which is either not there or whole."""
    with source.open("rb") as plain, _whole(target) as sealed:
        seal(wrapper, key, plain, sealed, path)


def open_file(wrapper: Wrapper, source: Path, target: Path, path: str) -> None:
    """A sealed file's plain bytes at `target`, which appears once all of it was verified."""
    with source.open("rb") as sealed, _whole(target) as plain:
        open_sealed(wrapper, sealed, plain, path)


def open_bytes(wrapper: Wrapper, source: Path, path: str) -> bytes:
    """A small sealed file, in memory."""
    plain = io.BytesIO()
    with source.open("rb") as sealed:
        open_sealed(wrapper, sealed, plain, path)
    return plain.getvalue()


def key_of(source: Path, path: str) -> str:
    """The name of the key that a sealed file needs."""
    with source.open("rb") as sealed:
        return _header(sealed, path)[0]


def check(wrapper: Wrapper, source: Path, path: str) -> None:
    """Whether a sealed file could be opened now, as far as its key goes. Raises as `open_sealed` does."""
    with source.open("rb") as sealed:
        key, wrapped = _header(sealed, path)
    wrapper.unwrap(key, wrapped, _context(path))


def is_sealed(source: Path) -> bool:
    with source.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


@cache
def _registered() -> None:
    streaming_aead.register()


def _primitive(handle: tink.KeysetHandle) -> streaming_aead.StreamingAead:
    return handle.primitive(streaming_aead.StreamingAead)


def _context(path: str) -> bytes:
    return b"sarto/1/" + path.encode()


def _header(source: BinaryIO, path: str) -> tuple[str, bytes]:
    if source.read(len(MAGIC)) != MAGIC:
        raise FailedPrecondition(f"{path} is not a sealed file")
    size = int.from_bytes(source.read(4), "big")
    if not 0 < size <= MOST_HEADER_BYTES:
        raise FailedPrecondition(f"{path} is not a sealed file")
    try:
        header = orjson.loads(source.read(size))
        return str(header["key"]), base64.b64decode(header["wrapped"], validate=True)
    except (ValueError, KeyError, TypeError):
        raise FailedPrecondition(f"{path} is not a sealed file") from None


@contextmanager
def _whole(target: Path) -> Iterator[BinaryIO]:
    """A file of the owner's alone that takes its name when the block has ended well, and goes when it has not."""
    part = target.with_name(f".{target.name}.{secrets.token_hex(8)}")
    try:
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)


class _Kept(io.RawIOBase):
    """Lends a file to Tink, whose streams close what they were given."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def readable(self) -> bool:
        return self._file.readable()

    def writable(self) -> bool:
        return self._file.writable()

    def read(self, size: int = -1) -> bytes:
        return self._file.read(size)

    def readinto(self, buffer: Any) -> int:
        data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def write(self, data: Any) -> int:
        return self._file.write(data)
