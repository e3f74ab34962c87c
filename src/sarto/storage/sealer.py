"""What seals and opens the content of objects: the key service, and the private folder that opened content lies in.

Used by `buckets` for objects under a key, and by `control.sealing` for what a job leaves in the home.
"""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import BinaryIO

from sarto.storage import encryption
from sarto.storage.content import Seal, disk
from sarto.storage.keys import KeyService
from sarto.storage.opened import OpenedFolders
from sarto.storage.private import PrivateFolder


class Sealer:
    """`opened`: whole folders that stay in the open while they are in use."""

    def __init__(self, keys: KeyService, private: PrivateFolder) -> None:
        self.keys, self.private = keys, private
        self.opened = OpenedFolders(keys, private)

    def seal(self, key: str) -> Seal:
        """For one object's content, bound to an identity of its own that no other content has."""
        path = f"objects/{secrets.token_hex(16)}"
        return Seal(key, path, lambda file: encryption.sealing(self.keys, key, file, path))

    def open(self, source: Path, path: str) -> BinaryIO:
        """A sealed file's plain bytes, verified to their end, as a file without a name. The caller closes it.

        Raises FileNotFoundError, and FailedPrecondition where the key or the file does not allow it."""
        plain = self.private.file()
        try:
            with source.open("rb") as sealed, disk():
                encryption.open_sealed(self.keys, sealed, plain, path)
            plain.seek(0)
        except BaseException:
            plain.close()
            raise
        return plain

    def seal_file(self, key: str, source: Path, target: Path, path: str) -> None:
        """A file sealed at `target`, its folder made where it is missing."""
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        encryption.seal_file(self.keys, key, source, target, path)

    def open_file(self, source: Path, target: Path, path: str) -> None:
        """A sealed file's plain bytes at `target`, its folder made where it is missing."""
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        encryption.open_file(self.keys, source, target, path)
