"""Envelope encryption of files: Tink's streaming AEAD under a new data key for each, wrapped by a customer key.

An encrypted file is `MAGIC`, the length of its header, the header (JSON: the key's name and the wrapped data key) and
the stream. The file's path is authenticated with both, so encrypted files cannot be swapped. Decrypted bytes stay in a
temporary file beside the target until the end of the stream is verified.
"""

from __future__ import annotations

import base64
import io
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO, Protocol, cast

import orjson
import tink
from tink import secret_key_access, streaming_aead

from sarto.errors import FailedPrecondition
from sarto.system.files import whole_file

MAGIC = b"SARTOSL1"
MOST_HEADER_BYTES = 64 * 1024
BLOCK = 1 << 20


class KeyUnusable(FailedPrecondition):
    """The key cannot be used now but may be later: it is disabled, scheduled for destruction, or unreachable."""


class KeyWrapper(Protocol):
    """A key service: wraps and unwraps small secrets under a key with this resource name.

    Both raise KeyUnusable when the key cannot be used now, and FailedPrecondition when it never can be again."""

    def wrap(self, key: str, secret: bytes, context: bytes) -> bytes: ...

    def unwrap(self, key: str, wrapped: bytes, context: bytes) -> bytes: ...


def seal(wrapper: KeyWrapper, key: str, source: BinaryIO, target: BinaryIO, path: str) -> None:
    """Encrypt the rest of `source` under `key`, bound to `path`, into `target`, which stays open."""
    with sealing(wrapper, key, target, path) as stream:
        while block := source.read(BLOCK):
            stream.write(block)


def sealing(wrapper: KeyWrapper, key: str, target: BinaryIO, path: str) -> BinaryIO:
    """A stream that encrypts its input into `target`; complete once the stream is closed."""
    context = _context(path)
    _registered()
    handle = tink.new_keyset_handle(streaming_aead.streaming_aead_key_templates.AES256_GCM_HKDF_1MB)
    plain = tink.proto_keyset_format.serialize(handle, secret_key_access.TOKEN)
    header = orjson.dumps({"key": key, "wrapped": base64.b64encode(wrapper.wrap(key, plain, context)).decode()})
    target.write(MAGIC + len(header).to_bytes(4, "big") + header)
    return cast(BinaryIO, _primitive(handle).new_encrypting_stream(cast(Any, _UnclosedFile(target)), context))


def open_sealed(wrapper: KeyWrapper, source: BinaryIO, target: BinaryIO, path: str) -> None:
    """Decrypt a file into `target`, whose content is invalid if this raises.

    Raises FailedPrecondition for a key that cannot be used, and for a file that was changed, cut or moved."""
    key, wrapped = _header(source, path)
    context = _context(path)
    plain = wrapper.unwrap(key, wrapped, context)
    _registered()
    try:
        handle = tink.proto_keyset_format.parse(plain, secret_key_access.TOKEN)
        with _primitive(handle).new_decrypting_stream(cast(Any, _UnclosedFile(source)), context) as stream:
            while block := stream.read(BLOCK):
                target.write(block)
    except (tink.TinkError, OSError) as error:
        raise FailedPrecondition(f"{path} is not the encrypted file: it was changed, truncated or moved.") from error


def seal_file(wrapper: KeyWrapper, key: str, source: Path, target: Path, path: str) -> None:
    """Encrypt a file into `target`, which is either missing or whole."""
    with source.open("rb") as plain, whole_file(target, 0o600) as sealed:
        seal(wrapper, key, plain, sealed, path)


def open_file(wrapper: KeyWrapper, source: Path, target: Path, path: str) -> None:
    """Decrypt a file into `target`, which appears once all of it was verified."""
    with source.open("rb") as sealed, whole_file(target, 0o600) as plain:
        open_sealed(wrapper, sealed, plain, path)


def key_of(source: Path, path: str) -> str:
    """The name of the key of an encrypted file."""
    with source.open("rb") as sealed:
        return _header(sealed, path)[0]


def check(wrapper: KeyWrapper, source: Path, path: str) -> None:
    """Check that the key of an encrypted file can be used now. Raises as `open_sealed` does."""
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
        raise FailedPrecondition(f"{path} is not an encrypted file.")
    size = int.from_bytes(source.read(4), "big")
    if not 0 < size <= MOST_HEADER_BYTES:
        raise FailedPrecondition(f"{path} is not an encrypted file.")
    try:
        header = orjson.loads(source.read(size))
        return str(header["key"]), base64.b64decode(header["wrapped"], validate=True)
    except (ValueError, KeyError, TypeError):
        raise FailedPrecondition(f"{path} is not an encrypted file.") from None


class _UnclosedFile(io.RawIOBase):
    """Passes a file to Tink, whose streams close their target, without closing it."""

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
