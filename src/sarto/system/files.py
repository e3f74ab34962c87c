"""Files: written whole, a full disk, and a file that another process appends to."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from sarto.errors import InvalidArgument, ResourceExhausted
from sarto.system.failpoints import around


def read_toml(path: Path) -> dict[str, Any]:
    """Raises InvalidArgument with line and column of a fault."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidArgument(f'{path} is not TOML: {error}. Texts need quotes, as in name = "value".') from None


def write_whole(path: Path, data: bytes, mode: int = 0o666, *, durable: bool = True) -> None:
    """Write a file so that it is either as it was or complete; if `durable`, also after the machine loses power.

    `mode` holds its permissions, less the umask. Several threads and processes, also of several machines, may write the
    same file at once: the last one wins.
    """
    with whole_file(path, mode, durable=durable) as file:
        file.write(data)


@contextmanager
def whole_file(path: Path, mode: int = 0o666, *, durable: bool = True) -> Iterator[BinaryIO]:
    """A file to write, with the promises of `write_whole`. A block that fails leaves `path` as it was."""
    with whole_path(path, durable=durable) as part, _new(part, mode) as file:
        yield file


@contextmanager
def whole_path(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """The same for a block that creates the file at the path that it is given, in the folder of `path`."""
    with _part(path) as part:
        yield part
        if durable:
            flush(part)
        with around("rename"):
            part.replace(path)


def create_whole(path: Path, data: bytes, mode: int = 0o666) -> bool:
    """Write a new file, complete and durable; False, and nothing is written, if there is one."""
    with _part(path) as part:
        with _new(part, mode) as file:
            file.write(data)
        flush(part)
        try:
            os.link(part, path)
        except FileExistsError:
            return False
    return True


@contextmanager
def whole_folder(path: Path, mode: int = 0o777) -> Iterator[Path]:
    """A new folder to fill beside `path`, which gets that name at the end of the block; it is removed if the block
    fails, or raises OSError because `path` has files by then."""
    part = _beside(path)
    try:
        part.mkdir(mode, parents=True)
        yield part
        with around("rename"):
            part.rename(path)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def flush(path: Path) -> None:
    """Make the content of a file, or the names in a folder, survive a loss of power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def leftovers(path: Path) -> Iterator[Path]:
    """The unfinished files of writers of `path` that were killed, or that still write it."""
    return path.parent.glob(f".{path.name}.*.part")


@contextmanager
def _part(path: Path) -> Iterator[Path]:
    """The unfinished file beside `path`, removed if it has not got another name by the end of the block."""
    part = _beside(path)
    try:
        yield part
    finally:
        part.unlink(missing_ok=True)


def _beside(path: Path) -> Path:
    # Random, not the process id: servers in containers share a data folder and have equal process ids.
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}.part")


def _new(path: Path, mode: int) -> BinaryIO:
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb")


@contextmanager
def disk() -> Iterator[None]:
    """Convert the error for a full disk to ResourceExhausted."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ResourceExhausted("The disk of the buckets is full; free space and upload again.") from error
        raise


class GrowingFile:
    """Continues reading at its last position; an incomplete line is read the next time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0

    def lines(self) -> list[bytes]:
        """Lines added since the last call, without blank ones; empty while there is no file."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                data = file.read()
        except FileNotFoundError:
            return []
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        return [line for line in whole.split(b"\n") if line.strip()]
