"""Sealed folders in the open: opened into the private folder when first asked for, closed when their key refuses or
when nobody has asked for a while.

What is asked for again is not opened again, but its key is asked: at most once a second, once a minute where the key
lies in another service. `tend` asks for all of them; whoever runs the service calls it every few seconds.
"""

from __future__ import annotations

import shutil
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from sarto.errors import FailedPrecondition, NotFound
from sarto.storage import encryption
from sarto.storage.keys import KeyService
from sarto.storage.private import PrivateFolder

CHECK_SECONDS, EXTERNAL_CHECK_SECONDS = 1.0, 60.0
IDLE_SECONDS = 600.0


@dataclass
class _Opened:
    plain: Path
    checked_at: float
    asked_at: float
    check_seconds: float


class OpenedFolders:
    """Any thread may call; a sealed folder never changes while it exists."""

    def __init__(self, keys: KeyService, private: PrivateFolder) -> None:
        self._keys, self._private = keys, private
        self._opened: dict[Path, _Opened] = {}
        self._refused: set[str] = set()
        self._lock = threading.Lock()

    def open(self, folder: Path) -> Path:
        """A folder with the plain files. Raises KeyUnusable or FailedPrecondition as the key does, and NotFound."""
        with self._lock:
            now, found = time.monotonic(), self._opened.get(folder)
            if found is None:
                found = self._opened[folder] = self._open(folder, now)
            elif now - found.checked_at >= found.check_seconds:
                self._check(folder, found, now)
            found.asked_at = now
            return found.plain

    def tend(self) -> list[str]:
        """Close what may not stay open; gives the names of the folders whose key refused since the last time."""
        with self._lock:
            now = time.monotonic()
            for folder, found in list(self._opened.items()):
                try:
                    if now - found.checked_at >= found.check_seconds:
                        self._check(folder, found, now)
                except (FailedPrecondition, NotFound):
                    continue  # it is closed
                if now - found.asked_at >= IDLE_SECONDS:
                    self._close(folder)
            refused, self._refused = sorted(self._refused), set()
        return refused

    def _open(self, folder: Path, now: float) -> _Opened:
        plain = self._private.new(f"opened/{folder.name}")
        key = ""
        try:
            for source in folder.iterdir():
                path = path_in(folder, source.name)
                encryption.open_file(self._keys, source, plain / source.name, path)
                key = encryption.key_of(source, path)
        except FileNotFoundError:
            raise NotFound(f"The files of {folder.name} were deleted.") from None
        except BaseException:
            shutil.rmtree(plain, ignore_errors=True)
            raise
        seconds = EXTERNAL_CHECK_SECONDS if key in self._keys.external else CHECK_SECONDS
        return _Opened(plain, now, now, seconds)

    def _check(self, folder: Path, found: _Opened, now: float) -> None:
        try:
            source = next(folder.iterdir())
            encryption.check(self._keys, source, path_in(folder, source.name))
        except (FileNotFoundError, StopIteration):
            self._refuse(folder)
            raise NotFound(f"The files of {folder.name} were deleted.") from None
        except BaseException:
            self._refuse(folder)
            raise
        found.checked_at = now

    def _refuse(self, folder: Path) -> None:
        self._refused.add(folder.name)
        self._close(folder)

    def _close(self, folder: Path) -> None:
        shutil.rmtree(self._opened.pop(folder).plain, ignore_errors=True)


def path_in(folder: Path, name: str) -> str:
    """What a file of a sealed folder is bound to: its path from the home, wherever that lies."""
    return f"{folder.parent.name}/{folder.name}/{name}"
