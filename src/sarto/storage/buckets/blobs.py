"""Content-addressed files: bytes are hashed by a `Spool` while they are stored, and named by their SHA-256.

Blobs have no bucket and no object name. `store` names and removes them inside its transactions; no other module writes
here.
"""

from __future__ import annotations

import base64
import hashlib
import io
import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self, cast

import google_crc32c

from sarto.errors import InvalidArgument
from sarto.storage.encryption.seal import Seal
from sarto.system.failpoints import around
from sarto.system.files import disk, flush

BLOCK = 1 << 20


@dataclass(frozen=True)
class Content:
    """A complete file that is not placed yet: its hashes (`md5` and `crc32c` in base64), size and present path."""

    sha256: str
    md5: str
    crc32c: str
    size: int
    spooled: Path
    kms_key: str = ""
    """The key under which it is encrypted; then `sha256` is that of the encrypted bytes, the other hashes are of the
    plain ones."""
    sealed_as: str = ""
    """The path with which it is authenticated."""


@dataclass(frozen=True)
class Checksums:
    """Checksums of the sender, in base64; empty if the sender gave none."""

    md5: str = ""
    crc32c: str = ""

    def check(self, content: Content) -> None:
        """Raises InvalidArgument if the received bytes have other checksums."""
        for name, stated, computed in (("MD5", self.md5, content.md5), ("CRC32C", self.crc32c, content.crc32c)):
            if stated and stated != computed:
                raise InvalidArgument(
                    f'Provided {name} hash "{stated}" doesn\'t match calculated {name} hash "{computed}".'
                )


class Hashes:
    """SHA-256, MD5 and CRC32C of one pass over the bytes."""

    def __init__(self) -> None:
        self.size = 0
        self._sha256, self._md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
        self._crc32c = 0

    def update(self, block: bytes) -> None:
        self._sha256.update(block)
        self._md5.update(block)
        self._crc32c = google_crc32c.extend(self._crc32c, block)
        self.size += len(block)

    def content(self, path: Path) -> Content:
        md5, crc32c = (base64.b64encode(digest).decode() for digest in (self._md5.digest(), self._crc32c.to_bytes(4)))
        return Content(self._sha256.hexdigest(), md5, crc32c, self.size, path)


class Spool:
    """A file being received, encrypted if a seal is given. `finish` makes it durable; leaving the `with` block removes
    it if it was not placed."""

    def __init__(self, folder: Path, seal: Seal | None = None) -> None:
        self.path = folder / f"spool-{secrets.token_hex(16)}"
        self._hashes, self._seal = Hashes(), seal
        with disk():
            self._file = os.fdopen(os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb", buffering=0)
        self._sink = _Sink(self._file)
        try:
            self._stream = seal.begin(cast(BinaryIO, self._sink)) if seal else None
        except BaseException:  # a key that cannot be used, or its service is away
            self._discard()
            raise

    def write(self, block: bytes) -> None:
        with disk():
            if self._stream is None:
                _write_all(self._file, block)
            else:
                self._stream.write(block)
                self._sink.check()
        self._hashes.update(block)

    def read_from(self, source: BinaryIO) -> None:
        """Append the rest of `source`."""
        while block := source.read(BLOCK):
            self.write(block)

    def finish(self) -> Content:
        """Make the bytes durable and return the file's hashes."""
        with disk():
            if self._stream is not None:
                self._stream.close()
                self._sink.check()
            os.fchmod(self._file.fileno(), 0o400)
            os.fsync(self._file.fileno())
        self._file.close()
        content = self._hashes.content(self.path)
        if self._seal is None:
            return content
        sha256 = self._sink.sha256.hexdigest()
        return replace(content, sha256=sha256, kms_key=self._seal.kms_key, sealed_as=self._seal.sealed_as)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._discard()

    def _discard(self) -> None:
        self._file.close()
        self.path.unlink(missing_ok=True)


class _Sink(io.RawIOBase):
    """Target of an encrypting stream: hashes the bytes, and keeps an exception that the stream may suppress."""

    def __init__(self, file: BinaryIO) -> None:
        self.sha256 = hashlib.sha256()
        self._below = file
        self._fault: OSError | None = None

    def writable(self) -> bool:
        return True

    def write(self, block: Any) -> int:
        try:
            _write_all(self._below, block)
        except OSError as error:
            self._fault = error
            raise
        self.sha256.update(block)
        return len(block)

    def check(self) -> None:
        if self._fault is not None:
            raise self._fault


def _write_all(file: BinaryIO, block: bytes) -> None:
    view = memoryview(block)
    while view:
        view = view[file.write(view) :]


class ContentStore:
    """Files `ROOT/objects/<aa>/<name>`, which never change; a name begins with the SHA-256 of the content
    (`objects.content_name`). Unfinished files are in `ROOT/uploads`."""

    def __init__(self, root: Path) -> None:
        self.objects, self.uploads = root / "objects", root / "uploads"
        for folder in (self.objects, self.uploads):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def path(self, name: str) -> Path:
        return self.objects / name[:2] / name

    def spool(self, seal: Seal | None = None) -> Spool:
        return Spool(self.uploads, seal)

    def adopt(self, path: Path) -> Content:
        """Hash a complete file on this file system, so that it can be placed without a copy."""
        hashes = Hashes()
        with path.open("rb") as file:
            while block := file.read(BLOCK):
                hashes.update(block)
        path.chmod(0o400)
        return hashes.content(path)

    def place(self, content: Content, name: str) -> None:
        """Move a finished spool to its path, durably. Call inside the write transaction, which excludes collection."""
        target = self.path(name)
        if target.is_file() and target.stat().st_size == content.size:
            return
        with disk():
            target.parent.mkdir(mode=0o700, exist_ok=True)
            with around("rename"):
                content.spooled.replace(target)
            for folder in (target.parent, self.objects):
                flush(folder)

    def share(self, name: str, other: str) -> None:
        """Link the same bytes to another name, durably. Call inside the write transaction."""
        target = self.path(other)
        if target.is_file():
            return
        with disk():
            os.link(self.path(name), target)
            flush(target.parent)

    def remove(self, name: str) -> None:
        """Delete content without references. Call inside the write transaction, which excludes new references."""
        self.path(name).unlink(missing_ok=True)

    def all(self) -> Iterator[str]:
        for folder in self.objects.iterdir():
            yield from (file.name for file in folder.iterdir())
