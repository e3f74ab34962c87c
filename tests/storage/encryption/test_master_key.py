"""The master key: where it comes from, and every customer key sealed under a new one."""

from __future__ import annotations

import base64
import os
from collections.abc import Iterator
from pathlib import Path

import keyring
import pytest
from keyring.backend import KeyringBackend

from sarto.errors import FailedPrecondition
from sarto.storage.encryption import master_key
from sarto.storage.encryption.keyset_store import KeyMaterial

VERSIONS = [f"projects/1/locations/us/keyRings/r/cryptoKeys/k/cryptoKeyVersions/{n}" for n in range(1, 4)]


@pytest.fixture
def sealed(tmp_path: Path) -> dict[str, bytes]:
    """A secret under each version's key, in a home whose master key is its own."""
    material = KeyMaterial(tmp_path / "keys", master_key.read_master(tmp_path))
    for version in VERSIONS[:2]:  # the third is destroyed
        material.create(version)
    return {version: bytes(material.primitive(version).encrypt(b"secret", b"here")) for version in VERSIONS[:2]}


def check(home: Path, master: bytes, sealed: dict[str, bytes]) -> None:
    material = KeyMaterial(home / "keys", master)
    for version, secret in sealed.items():
        assert material.primitive(version).decrypt(secret, b"here") == b"secret"


def test_every_key_opens_under_the_new_master_key_and_none_under_the_old(
    tmp_path: Path, sealed: dict[str, bytes]
) -> None:
    old = master_key.read_master(tmp_path)
    assert master_key.rotate_file(tmp_path, tmp_path / "keys", VERSIONS) == 2
    assert master_key.read_master(tmp_path) != old
    check(tmp_path, master_key.read_master(tmp_path), sealed)
    with pytest.raises(FailedPrecondition, match="another master key"):
        check(tmp_path, old, sealed)
    assert [path.name for path in (tmp_path / "credentials").iterdir()] == ["master.key"]


def test_a_rotation_that_was_cut_off_is_named_and_finished(
    tmp_path: Path, sealed: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    moved = KeyMaterial.move

    def once(self: KeyMaterial, version: str, other: KeyMaterial) -> bool:
        if version == VERSIONS[1]:
            raise KeyboardInterrupt
        return moved(self, version, other)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(KeyMaterial, "move", once)
        master_key.rotate_file(tmp_path, tmp_path / "keys", VERSIONS)
    with pytest.raises(FailedPrecondition, match="sarto kms master rotate"):
        master_key.read_master(tmp_path)
    assert master_key.rotate_file(tmp_path, tmp_path / "keys", VERSIONS) == 1
    check(tmp_path, master_key.read_master(tmp_path), sealed)


def test_a_master_key_kept_elsewhere_is_rotated_to_one_kept_elsewhere(tmp_path: Path, sealed: dict[str, bytes]) -> None:
    new = os.urandom(32)
    assert master_key.rotate(tmp_path / "keys", master_key.read_master(tmp_path), new, VERSIONS) == 2
    check(tmp_path, master_key.read_master(tmp_path, base64.b64encode(new).decode()), sealed)


class MemoryKeyring(KeyringBackend):  # type: ignore[misc]
    """A keyring as a system has one, without the system."""

    priority = 1.0

    def __init__(self) -> None:
        self.held: dict[tuple[str, str], str] = {}

    def get_password(self, service: str, username: str) -> str | None:
        return self.held.get((service, username))

    def set_password(self, service: str, username: str, password: str) -> None:
        self.held[service, username] = password

    def delete_password(self, service: str, username: str) -> None:
        del self.held[service, username]


@pytest.fixture
def system_keyring() -> Iterator[MemoryKeyring]:
    before, made = keyring.get_keyring(), MemoryKeyring()
    keyring.set_keyring(made)
    yield made
    keyring.set_keyring(before)


def test_the_systems_keyring_holds_the_master_key_and_no_file_does(
    tmp_path: Path, system_keyring: MemoryKeyring
) -> None:
    material = KeyMaterial(tmp_path / "keys", master_key.read_master(tmp_path, in_keyring=True))
    material.create(VERSIONS[0])
    sealed = {VERSIONS[0]: bytes(material.primitive(VERSIONS[0]).encrypt(b"secret", b"here"))}
    assert not (tmp_path / "credentials").exists()
    assert master_key.rotate_keyring(tmp_path, tmp_path / "keys", VERSIONS) == 1
    check(tmp_path, master_key.read_master(tmp_path, in_keyring=True), sealed)
    assert len(system_keyring.held) == 1


def test_a_system_without_a_keyring_is_told_so(tmp_path: Path) -> None:
    from keyring.backends.fail import Keyring

    before = keyring.get_keyring()
    keyring.set_keyring(Keyring())
    try:
        with pytest.raises(FailedPrecondition, match="keyring does not answer"):
            master_key.read_master(tmp_path, in_keyring=True)
    finally:
        keyring.set_keyring(before)
