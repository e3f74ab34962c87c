"""Where the secret part of a customer key lies: Tink keysets in a folder, each sealed by the home's master key.

One file for each key version, bound to its name; destroying a version overwrites and removes its file. Knows no state
of a key: `keys` asks the database first.
"""

from __future__ import annotations

import base64
import binascii
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

MASTER_FILE = "master.key"
NONCE_BYTES = 12


class KeyMaterial:
    """`folder` holds the sealed keysets; `master` is 32 bytes."""

    def __init__(self, folder: Path, master: bytes) -> None:
        self._folder, self._master = folder, AESGCM(master)

    def create(self, version: str) -> None:
        """New material for a key version, by its resource name."""
        _register()
        handle = tink.new_keyset_handle(aead.aead_key_templates.AES256_GCM)
        plain = tink.proto_keyset_format.serialize(handle, secret_key_access.TOKEN)
        nonce = secrets.token_bytes(NONCE_BYTES)
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self._path(version)
        part = path.with_suffix(".part")
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(nonce + self._master.encrypt(nonce, plain, version.encode()))
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)

    def primitive(self, version: str) -> aead.Aead:
        """Raises FailedPrecondition when the material is gone, or is not this master key's."""
        try:
            sealed = self._path(version).read_bytes()
            plain = self._master.decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], version.encode())
        except FileNotFoundError:
            raise FailedPrecondition(f"The material of {version} is not here any more.") from None
        except (InvalidTag, ValueError):
            raise FailedPrecondition(
                f"{version} was sealed by another master key; set the one it was made with."
            ) from None
        _register()
        return tink.proto_keyset_format.parse(plain, secret_key_access.TOKEN).primitive(aead.Aead)

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


def read_master(home: Path, given: str = "", file: Path | None = None) -> bytes:
    """The master key: the one given in base64, or the one in `file`, or the home's own, made when first asked for.

    Raises FailedPrecondition for one that is not 32 bytes in base64, and for a file that others may read.
    """
    if given:
        return _decoded(given, "master_key")
    path = file or home / "credentials" / MASTER_FILE
    if file is None and not path.exists():
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as made:
            made.write(base64.b64encode(secrets.token_bytes(32)) + b"\n")
            made.flush()
            os.fsync(made.fileno())
        try:
            os.link(part, path)  # whoever comes first makes it
        except FileExistsError:
            pass
        part.unlink()
    try:
        if path.stat().st_mode & 0o077:
            raise FailedPrecondition(f"Others may read the master key {path}; chmod 600 it.")
        return _decoded(path.read_text(), str(path))
    except OSError as error:
        raise FailedPrecondition(f"The master key {path} cannot be read: {error.strerror}.") from None


def _decoded(text: str, where: str) -> bytes:
    try:
        key = base64.b64decode(text.strip(), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if len(key) != 32:
        raise FailedPrecondition(
            f"The master key in {where} is not 32 bytes in base64; `openssl rand -base64 32` makes one."
        )
    return key


@cache
def _register() -> None:
    aead.register()
