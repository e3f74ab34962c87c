"""A cache of decrypted folders in the private folder. An entry is removed when its key refuses, when its files are
deleted, or after an idle time.

A cached folder is not decrypted again, but its key's state is checked at most once a second; once a minute if the key
is in another service. `tend` checks all of them; the service calls it every few seconds.
"""

from __future__ import annotations

import shutil
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from weakref import WeakValueDictionary

from sarto.errors import FailedPrecondition, NotFound
from sarto.storage.encryption import envelope
from sarto.storage.encryption.key_service import KeyService
from sarto.storage.encryption.scratch_folder import PrivateFolder

CHECK_SECONDS, EXTERNAL_CHECK_SECONDS = 1.0, 60.0
IDLE_SECONDS = 600.0


@dataclass
class _UnsealedFolder:
    plain: Path
    checked_at: float
    asked_at: float
    check_seconds: float


class UnsealedFolders:
    """The cache. Thread-safe; the files of an encrypted folder never change."""

    def __init__(self, keys: KeyService, private: PrivateFolder) -> None:
        self._keys, self._private = keys, private
        self._opened: dict[Path, _UnsealedFolder] = {}
        self._refused: set[str] = set()
        self._locks: WeakValueDictionary[Path, threading.Lock] = WeakValueDictionary()
        self._lock = threading.Lock()

    def open(self, folder: Path) -> Path:
        """A folder with the plain files. Raises the key's KeyUnusable or FailedPrecondition, and NotFound."""
        with self._alone(folder):
            now, unsealed = time.monotonic(), self._opened.get(folder)
            if unsealed is None:
                unsealed = self._opened[folder] = self._open(folder, now)
            elif now - unsealed.checked_at >= unsealed.check_seconds:
                self._check(folder, unsealed, now)
            unsealed.asked_at = now
            return unsealed.plain

    def tend(self) -> list[str]:
        """Remove idle entries and those whose key refuses; returns the names of the folders refused since the last
        call."""
        for folder in list(self._opened):
            with self._alone(folder):
                self._tend(folder)
        with self._lock:
            refused, self._refused = sorted(self._refused), set()
        return refused

    def _tend(self, folder: Path) -> None:
        now, unsealed = time.monotonic(), self._opened.get(folder)
        if unsealed is None:
            return
        try:
            if now - unsealed.checked_at >= unsealed.check_seconds:
                self._check(folder, unsealed, now)
        except (FailedPrecondition, NotFound):
            return  # it is closed
        if now - unsealed.asked_at >= IDLE_SECONDS:
            self._close(folder)

    def _alone(self, folder: Path) -> threading.Lock:
        """The lock of one folder, so that a slow key or a large folder delays no other folder."""
        with self._lock:
            lock = self._locks.get(folder)
            if lock is None:
                lock = self._locks[folder] = threading.Lock()
            return lock

    def _open(self, folder: Path, now: float) -> _UnsealedFolder:
        plain = self._private.new(f"opened/{folder.name}")
        key = ""
        try:
            for source in folder.iterdir():
                path = path_in(folder, source.name)
                envelope.open_file(self._keys, source, plain / source.name, path)
                key = envelope.key_of(source, path)
        except FileNotFoundError:
            raise NotFound(f"The files of {folder.name} were deleted.") from None
        except BaseException:
            shutil.rmtree(plain, ignore_errors=True)
            raise
        seconds = EXTERNAL_CHECK_SECONDS if key in self._keys.external else CHECK_SECONDS
        return _UnsealedFolder(plain, now, now, seconds)

    def _check(self, folder: Path, unsealed: _UnsealedFolder, now: float) -> None:
        try:
            source = next(folder.iterdir())
            envelope.check(self._keys, source, path_in(folder, source.name))
        except (FileNotFoundError, StopIteration):
            self._refuse(folder)
            raise NotFound(f"The files of {folder.name} were deleted.") from None
        except BaseException:
            self._refuse(folder)
            raise
        unsealed.checked_at = now

    def _refuse(self, folder: Path) -> None:
        with self._lock:
            self._refused.add(folder.name)
        self._close(folder)

    def _close(self, folder: Path) -> None:
        shutil.rmtree(self._opened.pop(folder).plain, ignore_errors=True)


def path_in(folder: Path, name: str) -> str:
    """The path to which a file of an encrypted folder is bound: relative to the home, at any location of it."""
    return f"{folder.parent.name}/{folder.name}/{name}"
