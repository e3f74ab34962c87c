"""The secret part of customer keys: Tink keysets in a folder, each encrypted by the home's master key.

There is one file for each key version, bound to its name. Destroying a version overwrites and removes its file.
`key_service` checks the state of a key in the database first.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
from functools import cache
from pathlib import Path

import tink
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from tink import aead, secret_key_access

from sarto.errors import FailedPrecondition
from sarto.system.files import leftovers, write_whole

NONCE_BYTES = 12


class KeyMaterial:
    """`folder` has the encrypted keysets; `master` is 32 bytes."""

    def __init__(self, folder: Path, master: bytes) -> None:
        self._folder, self._master = folder, AESGCM(master)

    def create(self, version: str) -> None:
        """Create material for a key version, by its resource name."""
        _register()
        handle = tink.new_keyset_handle(aead.aead_key_templates.AES256_GCM)
        self._write(version, tink.proto_keyset_format.serialize(handle, secret_key_access.TOKEN))

    def primitive(self, version: str) -> aead.Aead:
        """The AEAD of a version. Raises FailedPrecondition when its material is missing or encrypted by another master
        key."""
        _register()
        return tink.proto_keyset_format.parse(self._read(version), secret_key_access.TOKEN).primitive(aead.Aead)

    def move(self, version: str, other: KeyMaterial) -> bool:
        """Encrypt a version's material under another master key, in place; False if it already was, or is missing."""
        if not self._path(version).exists():
            return False
        try:
            other._read(version)
        except FailedPrecondition:
            other._write(version, self._read(version))
            return True
        return False

    def _write(self, version: str, plain: bytes) -> None:
        nonce = secrets.token_bytes(NONCE_BYTES)
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        sealed = nonce + self._master.encrypt(nonce, plain, version.encode())
        write_whole(self._path(version), sealed, 0o600)

    def _read(self, version: str) -> bytes:
        try:
            sealed = self._path(version).read_bytes()
            return self._master.decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], version.encode())
        except FileNotFoundError:
            raise FailedPrecondition(f"The material of {version} is missing.") from None
        except (InvalidTag, ValueError):
            raise FailedPrecondition(f"{version} was encrypted by another master key; set that one.") from None

    def destroy(self, version: str) -> None:
        """Overwrite and remove the material of a version, with what a killed `move` left of it; repeatable."""
        for path in (*leftovers(self._path(version)), self._path(version)):
            with contextlib.suppress(FileNotFoundError):
                with path.open("r+b") as file:
                    file.write(secrets.token_bytes(path.stat().st_size))
                    file.flush()
                    os.fsync(file.fileno())
                path.unlink()

    def _path(self, version: str) -> Path:
        return self._folder / f"{hashlib.sha256(version.encode()).hexdigest()}.keyset"


@cache
def _register() -> None:
    aead.register()
