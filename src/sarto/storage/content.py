"""Content-addressed files: bytes come in through a `Spool`, are hashed in that one pass, and lie under their SHA-256.

Knows no bucket and no name. `buckets` places and collects content inside its transactions; nothing else writes here.
"""

from __future__ import annotations

import base64
import errno
import hashlib
import io
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self, cast

import google_crc32c

from sarto.errors import InvalidArgument, ResourceExhausted
from sarto.failpoints import around

BLOCK = 1 << 20


@dataclass(frozen=True)
class Content:
    """A complete file that waits to be placed: its hashes (`md5` and `crc32c` in base64), size and present path."""

    sha256: str
    md5: str
    crc32c: str
    size: int
    spooled: Path
    kms_key: str = ""
    """The key it is sealed under: then `sha256` is of the sealed bytes, the other facts are of the plain ones."""
    sealed_as: str = ""
    """The path that is authenticated with it."""


@dataclass(frozen=True)
class Checksums:
    """What a sender says its bytes hash to, in base64; an empty text means it did not say."""

    md5: str = ""
    crc32c: str = ""

    def check(self, content: Content) -> None:
        """Raises InvalidArgument when the bytes that arrived are not the bytes that were sent."""
        for name, said, found in (("MD5", self.md5, content.md5), ("CRC32C", self.crc32c, content.crc32c)):
            if said and said != found:
                raise InvalidArgument(f'Provided {name} hash "{said}" doesn\'t match calculated {name} hash "{found}".')


@contextmanager
def disk() -> Iterator[None]:
    """A full disk becomes ResourceExhausted, which says so."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ResourceExhausted("the disk that holds the buckets is full; free space and upload again") from error
        raise


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


@dataclass(frozen=True)
class Seal:
    """How content is sealed while it is received: the key's name, and a function from a file to a sealing stream."""

    kms_key: str
    sealed_as: str
    begin: Callable[[BinaryIO], BinaryIO]


class Spool:
    """A file being received, under a seal if one is given. `finish` makes it durable; leaving the `with` block removes
    what was not placed."""

    def __init__(self, folder: Path, seal: Seal | None = None) -> None:
        self.path = folder / f"spool-{secrets.token_hex(16)}"
        self._hashes, self._seal = Hashes(), seal
        with disk():
            self._file = os.fdopen(os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb", buffering=0)
        self._sink = _Sink(self._file)
        self._stream = seal.begin(cast(BinaryIO, self._sink)) if seal else None

    def write(self, block: bytes) -> None:
        with disk():
            if self._stream is None:
                _write_all(self._file, block)
            else:
                self._stream.write(block)
                self._sink.check()
        self._hashes.update(block)

    def read_from(self, source: BinaryIO) -> None:
        """Everything `source` still holds."""
        while block := source.read(BLOCK):
            self.write(block)

    def finish(self) -> Content:
        """The file's hashes, once its bytes are on the disk."""
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
        self._file.close()
        self.path.unlink(missing_ok=True)


class _Sink(io.RawIOBase):
    """Where a sealing stream writes to: hashes what arrives, and keeps a fault that the stream may swallow."""

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
    """Files `ROOT/objects/<aa>/<sha256>`, never changed once there; work in progress lies in `ROOT/uploads`."""

    def __init__(self, root: Path) -> None:
        self.objects, self.uploads = root / "objects", root / "uploads"
        for folder in (self.objects, self.uploads):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def path(self, sha256: str) -> Path:
        return self.objects / sha256[:2] / sha256

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

    def place(self, content: Content) -> None:
        """Move a finished spool to its place, durably. Call inside the write transaction, where no collection runs."""
        target = self.path(content.sha256)
        if target.is_file() and target.stat().st_size == content.size:
            return
        with disk():
            target.parent.mkdir(mode=0o700, exist_ok=True)
            with around("rename"):
                content.spooled.replace(target)
            for folder in (target.parent, self.objects):
                _sync(folder)

    def remove(self, sha256: str) -> None:
        """Delete content nothing refers to. Call inside the write transaction, where no reference begins."""
        self.path(sha256).unlink(missing_ok=True)

    def all(self) -> Iterator[str]:
        for folder in self.objects.iterdir():
            yield from (file.name for file in folder.iterdir())


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
