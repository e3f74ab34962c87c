"""The private folder for decrypted files while a process works on them.

It is in memory (tmpfs) if the system has it, else in the home. It is removed when the process ends. The next process
removes the folder of a killed one; a file lock, which the kernel releases at a crash, shows whether a process is alive.
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
    """A private folder, created at the first use. `close` it once."""

    def __init__(self, root: Path) -> None:
        """`root` is shared by the processes of one home; each has a folder of its own in it."""
        self.root = root
        self._folder: Path | None = None
        self._lock: IO[bytes] | None = None

    @property
    def folder(self) -> Path:
        """The process's own folder. Raises FailedPrecondition if other users can access the place."""
        if self._folder is None:
            with _locked(self.root):
                folder = self.root / f"{os.getpid()}-{secrets.token_hex(8)}"
                folder.mkdir(mode=0o700)
                self._lock = (folder / LOCK).open("wb")
                fcntl.flock(self._lock, fcntl.LOCK_EX)
                self._folder = folder
        return self._folder

    def new(self, name: str) -> Path:
        """An empty folder with this name; former content is removed."""
        folder = self.folder / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(mode=0o700, parents=True)
        return folder

    def file(self) -> BinaryIO:
        """A file without a name, removed when it is closed."""
        return tempfile.TemporaryFile(dir=self.folder)

    def sweep(self) -> int:
        """Remove the folders of ended processes; returns their number."""
        if not self.root.exists():
            return 0
        with _locked(self.root):
            dead = [folder for folder in self.root.iterdir() if folder.is_dir() and not _is_held(folder / LOCK)]
            for folder in dead:
                shutil.rmtree(folder)
        if dead:
            logger.info("private folders removed", extra={"count": len(dead), "place": str(self.root)})
        return len(dead)

    def close(self) -> None:
        if self._folder is not None and self._lock is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._lock.close()
            self._folder = None


def place_for(home: Path, folder: Path | None = None) -> Path:
    """The configured folder, else one in memory, else one in the home."""
    if folder is not None:
        return folder
    if is_memory(SHARED_MEMORY):
        name = hashlib.sha256(str(home.resolve()).encode()).hexdigest()[:16]
        return SHARED_MEMORY / f"sarto-{os.getuid()}-{name}"
    return home / "private"


def is_memory(folder: Path) -> bool:
    """Whether the folder is in memory (or swap)."""
    try:
        mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    except OSError:
        return False
    inside = [m for m in mounts if len(m) > 2 and folder.resolve().is_relative_to(m[1])]
    return bool(inside) and max(inside, key=lambda m: len(m[1]))[2] in ("tmpfs", "ramfs")


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """The place, created and checked, under a lock against other processes that create or remove folders in it."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
        raise FailedPrecondition(f"{folder} belongs to someone else; name another place with private_folder.")
    folder.chmod(0o700)
    with (folder / LOCK).open("wb") as lock:
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
