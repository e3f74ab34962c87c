"""The master key, which encrypts all customer keys: from a setting, a file or the system's keyring, or created in the
home.

`rotate` encrypts every key under a new one. It can be interrupted and repeated: finished keys are skipped.
"""

from __future__ import annotations

import base64
import binascii
import secrets
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

from sarto.errors import FailedPrecondition
from sarto.storage.encryption.keyset_store import KeyMaterial
from sarto.system.files import create_whole

MASTER_FILE, NEXT = "master.key", ".next"
KEYRING_SERVICE = "sarto"


def read_master(home: Path, key: str = "", file: Path | None = None, *, in_keyring: bool = False) -> bytes:
    """The key from the setting in base64, from `file`, from the keyring, or from the home; the last two are created at
    the first call.

    Raises FailedPrecondition for a key that is not 32 bytes in base64, a file that others may read, a keyring that does
    not respond, and an interrupted rotation."""
    if key:
        return _decoded(key, "master_key")
    if in_keyring:
        _refuse_unfinished(_in_keyring(str(home) + NEXT) is not None)
        return _decoded(_in_keyring(str(home)) or _into_keyring(str(home)), "the keyring")
    path = file or own_file(home)
    if file is None:
        _refuse_unfinished(path.with_name(path.name + NEXT).exists())
        if not path.exists():
            make_file(path)
    return read_file(path)


def own_file(home: Path) -> Path:
    return home / "credentials" / MASTER_FILE


def read_file(path: Path) -> bytes:
    try:
        if path.stat().st_mode & 0o077:
            raise FailedPrecondition(f"Others may read the master key {path}; chmod 600 it.")
        return _decoded(path.read_text(), str(path))
    except OSError as error:
        raise FailedPrecondition(f"The master key {path} cannot be read: {error.strerror}.") from None


def make_file(path: Path) -> None:
    """Create a key file, unless another process created it meanwhile."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    create_whole(path, f"{_new()}\n".encode(), 0o600)


def rotate_file(home: Path, folder: Path, versions: Iterable[str]) -> int:
    """Rotate from the home's own key to a new one; returns the number of re-encrypted versions."""
    path = own_file(home)
    next_path = path.with_name(path.name + NEXT)
    if not next_path.exists():
        make_file(next_path)
    count = rotate(folder, read_file(path), read_file(next_path), versions)
    next_path.replace(path)
    return count


def rotate_keyring(home: Path, folder: Path, versions: Iterable[str]) -> int:
    """Rotate the key in the system's keyring."""
    name = str(home)
    old = _decoded(_in_keyring(name) or _into_keyring(name), "the keyring")
    text = _in_keyring(name + NEXT) or _into_keyring(name + NEXT)
    count = rotate(folder, old, _decoded(text, "the keyring"), versions)
    _keyring().set_password(KEYRING_SERVICE, name, text)
    _keyring().delete_password(KEYRING_SERVICE, name + NEXT)
    return count


def rotate(folder: Path, old: bytes, new: bytes, versions: Iterable[str]) -> int:
    """Encrypt the material in `folder` under `new`; returns the number of versions. Raises FailedPrecondition for
    material that neither key decrypts."""
    before, after = KeyMaterial(folder, old), KeyMaterial(folder, new)
    return sum(before.move(version, after) for version in versions)


def _new() -> str:
    return base64.b64encode(secrets.token_bytes(32)).decode()


def _refuse_unfinished(is_unfinished: bool) -> None:
    if is_unfinished:
        raise FailedPrecondition("A rotation of the master key was interrupted; finish it: `sarto kms master rotate`.")


def _in_keyring(name: str) -> str | None:
    keyring = _keyring()
    try:
        key: str | None = keyring.get_password(KEYRING_SERVICE, name)
    except keyring.errors.KeyringError as error:
        raise FailedPrecondition(f"The system's keyring does not answer: {error}") from None
    return key


def _into_keyring(name: str) -> str:
    keyring, key = _keyring(), _new()
    try:
        keyring.set_password(KEYRING_SERVICE, name, key)
    except keyring.errors.KeyringError as error:
        raise FailedPrecondition(f"The system's keyring refuses the master key: {error}") from None
    return key


def _keyring() -> ModuleType:
    try:
        import keyring  # an extra
        import keyring.errors
    except ImportError:
        raise FailedPrecondition("master_key_keyring needs a package: `pip install 'sarto[keyring]'`.") from None
    return keyring


def _decoded(text: str, where: str) -> bytes:
    try:
        key = base64.b64decode(text.strip(), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if len(key) != 32:
        raise FailedPrecondition(
            f"The master key in {where} is not 32 bytes in base64; `openssl rand -base64 32` generates one."
        )
    return key
