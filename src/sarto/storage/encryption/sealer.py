"""Encrypts and decrypts the content of objects, with the key service and the private folder."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import BinaryIO

from sarto.storage.encryption import envelope
from sarto.storage.encryption.key_service import KeyService
from sarto.storage.encryption.scratch_folder import PrivateFolder
from sarto.storage.encryption.seal import Seal
from sarto.storage.encryption.unsealed_cache import UnsealedFolders
from sarto.system.files import disk


class Sealer:
    """`opened`: folders that stay decrypted while they are in use."""

    def __init__(self, keys: KeyService, private: PrivateFolder) -> None:
        self.keys, self.private = keys, private
        self.opened = UnsealedFolders(keys, private)

    def seal(self, key: str) -> Seal:
        """The encryption of one object's content, bound to a unique identity."""
        path = f"objects/{secrets.token_hex(16)}"
        return Seal(key, path, lambda file: envelope.sealing(self.keys, key, file, path))

    def open(self, source: Path, path: str) -> BinaryIO:
        """Decrypt a file, verified to its end, into a file without a name. The caller closes it.

        Raises FileNotFoundError, and FailedPrecondition for an unusable key or an invalid file."""
        plain = self.private.file()
        try:
            with source.open("rb") as sealed, disk():
                envelope.open_sealed(self.keys, sealed, plain, path)
            plain.seek(0)
        except BaseException:
            plain.close()
            raise
        return plain

    def seal_file(self, key: str, source: Path, target: Path, path: str) -> None:
        """Encrypt a file into `target`; creates its folder."""
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        envelope.seal_file(self.keys, key, source, target, path)

    def open_file(self, source: Path, target: Path, path: str) -> None:
        """Decrypt a file into `target`; creates its folder."""
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        envelope.open_file(self.keys, source, target, path)
