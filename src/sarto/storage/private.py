"""Where plain bytes of sealed artifacts may lie while a process works on them: a folder of that process alone.

In memory (tmpfs) where the system has it, else in the home. It is removed when the process ends; what a killed process
left is removed by the next one that starts. A lock, which no crash can leave behind, tells the dead from the living.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, BinaryIO

from sarto.errors import FailedPrecondition

logger = logging.getLogger(__name__)
SHARED_MEMORY = Path("/dev/shm")
LOCK = "lock"


class PrivateFolder:
    """`close` once; nothing is on the disk until something is asked for."""

    def __init__(self, place: Path) -> None:
        """`place` is shared by the processes of one home; each has a folder of its own in it."""
        self.place = place
        self._folder: Path | None = None
        self._lock: IO[bytes] | None = None

    @property
    def folder(self) -> Path:
        """The process's own folder. Raises FailedPrecondition when the place is not this user's alone."""
        if self._folder is None:
            with _locked(self.place):
                folder = self.place / f"{os.getpid()}-{secrets.token_hex(8)}"
                folder.mkdir(mode=0o700)
                self._lock = (folder / LOCK).open("wb")
                fcntl.flock(self._lock, fcntl.LOCK_EX)
                self._folder = folder
        return self._folder

    def new(self, name: str) -> Path:
        """An empty folder under this name; whatever was there is gone."""
        folder = self.folder / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(mode=0o700, parents=True)
        return folder

    def file(self) -> BinaryIO:
        """A file without a name, gone when it is closed."""
        return tempfile.TemporaryFile(dir=self.folder)

    def sweep(self) -> int:
        """Remove the folders of processes that are gone; gives how many there were."""
        if not self.place.exists():
            return 0
        with _locked(self.place):
            dead = [folder for folder in self.place.iterdir() if folder.is_dir() and not _is_held(folder / LOCK)]
            for folder in dead:
                shutil.rmtree(folder)
        if dead:
            logger.info("private folders removed", extra={"count": len(dead), "place": str(self.place)})
        return len(dead)

    def close(self) -> None:
        if self._folder is not None and self._lock is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._lock.close()
            self._folder = None


def place_for(home: Path, given: Path | None = None) -> Path:
    """The folder that is configured, else one in memory, else one in the home."""
    if given is not None:
        return given
    if is_memory(SHARED_MEMORY):
        name = hashlib.sha256(str(home.resolve()).encode()).hexdigest()[:16]
        return SHARED_MEMORY / f"sarto-{os.getuid()}-{name}"
    return home / "private"


def is_memory(folder: Path) -> bool:
    """Whether what is written there stays in memory (or swap)."""
    try:
        mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    except OSError:
        return False
    inside = [m for m in mounts if len(m) > 2 and folder.resolve().is_relative_to(m[1])]
    return bool(inside) and max(inside, key=lambda m: len(m[1]))[2] in ("tmpfs", "ramfs")


@contextmanager
def _locked(place: Path) -> Iterator[None]:
    """The place, there and ours, with nobody else making or removing folders in it."""
    place.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = place.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise FailedPrecondition(f"{place} belongs to someone else; name another place with private_folder.")
    place.chmod(0o700)
    with (place / LOCK).open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _is_held(lock: Path) -> bool:
    try:
        with lock.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return False
    except FileNotFoundError:
        return False
    except OSError:
        return True
