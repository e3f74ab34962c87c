"""Where the secret part of a customer key lies: Tink keysets in a folder, each sealed by the home's master key.

One file for each key version, bound to its name; destroying a version overwrites and removes its file. Knows no state
of a key: `keys` asks the database first.
"""

from __future__ import annotations

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

NONCE_BYTES = 12


class KeyMaterial:
    """`folder` holds the sealed keysets; `master` is 32 bytes."""

    def __init__(self, folder: Path, master: bytes) -> None:
        self._folder, self._master = folder, AESGCM(master)

    def create(self, version: str) -> None:
        """New material for a key version, by its resource name."""
        _register()
        handle = tink.new_keyset_handle(aead.aead_key_templates.AES256_GCM)
        self._write(version, tink.proto_keyset_format.serialize(handle, secret_key_access.TOKEN))

    def primitive(self, version: str) -> aead.Aead:
        """Raises FailedPrecondition when the material is gone, or is not this master key's."""
        _register()
        return tink.proto_keyset_format.parse(self._read(version), secret_key_access.TOKEN).primitive(aead.Aead)

    def move(self, version: str, other: KeyMaterial) -> bool:
        """Seal a version's material under another master key, in its place; False when it was already, or is gone."""
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
        path = self._path(version)
        part = path.with_suffix(".part")
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(nonce + self._master.encrypt(nonce, plain, version.encode()))
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)

    def _read(self, version: str) -> bytes:
        try:
            sealed = self._path(version).read_bytes()
            return self._master.decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], version.encode())
        except FileNotFoundError:
            raise FailedPrecondition(f"The material of {version} is not here any more.") from None
        except (InvalidTag, ValueError):
            raise FailedPrecondition(
                f"{version} was sealed by another master key; set the one it was made with."
            ) from None

    def destroy(self, version: str) -> None:
        """Overwrite and remove; repeatable."""
        path = self._path(version)
        try:
            with path.open("r+b") as file:
                file.write(secrets.token_bytes(path.stat().st_size))
                file.flush()
                os.fsync(file.fileno())
        except FileNotFoundError:
            return
        path.unlink()

    def _path(self, version: str) -> Path:
        return self._folder / f"{hashlib.sha256(version.encode()).hexdigest()}.keyset"


@cache
def _register() -> None:
    aead.register()
