"""Sealed files open under their key, their path and their whole length, and not otherwise."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest

from sarto.errors import FailedPrecondition
from sarto.storage.encryption import envelope
from sarto.storage.encryption.keyset_store import KeyMaterial
from sarto.storage.encryption.master_key import read_master


class OneKey:
    """A key service with one key, over real material."""

    def __init__(self, folder: Path) -> None:
        self.material = KeyMaterial(folder, os.urandom(32))
        self.material.create("one")

    def wrap(self, key: str, secret: bytes, context: bytes) -> bytes:
        return bytes(self.material.primitive(key).encrypt(secret, context))

    def unwrap(self, key: str, wrapped: bytes, context: bytes) -> bytes:
        return bytes(self.material.primitive(key).decrypt(wrapped, context))


@pytest.mark.parametrize("size", [0, 1, 1_000_000, 3_500_000])
def test_a_sealed_file_opens_to_the_same_bytes_and_shows_none_of_them(tmp_path: Path, size: int) -> None:
    service, plain = OneKey(tmp_path / "keys"), (b"canary" * (size // 6 + 1))[:size]
    (tmp_path / "plain").write_bytes(plain)
    envelope.seal_file(service, "one", tmp_path / "plain", tmp_path / "sealed", "jobs/7/plain")
    assert b"canary" not in (tmp_path / "sealed").read_bytes()
    envelope.open_file(service, tmp_path / "sealed", tmp_path / "again", "jobs/7/plain")
    assert (tmp_path / "again").read_bytes() == plain
    assert (tmp_path / "again").stat().st_mode & 0o077 == 0
    assert envelope.key_of(tmp_path / "sealed", "jobs/7/plain") == "one"


def test_a_changed_cut_or_moved_file_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    service, sealed = OneKey(tmp_path / "keys"), io.BytesIO()
    envelope.seal(service, "one", io.BytesIO(os.urandom(2_500_000)), sealed, "a")
    good = sealed.getvalue()
    changed = bytearray(good)
    changed[2_000_000] ^= 1
    for bad, path in (
        (bytes(changed), "a"),
        (good[:-1], "a"),
        (good[: 1 << 20], "a"),
        (b"plain", "a"),
        (good[:40], "a"),
    ):
        (tmp_path / "bad").write_bytes(bad)
        with pytest.raises(FailedPrecondition):
            envelope.open_file(service, tmp_path / "bad", tmp_path / "target", path)
        assert not (tmp_path / "target").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad", "keys"]


def test_material_is_bound_to_its_master_key_and_gone_once_destroyed(tmp_path: Path) -> None:
    master = read_master(tmp_path)
    assert (tmp_path / "credentials" / "master.key").stat().st_mode & 0o777 == 0o600
    material = KeyMaterial(tmp_path / "keys", master)
    material.create("v1")
    sealed = material.primitive("v1").encrypt(b"secret", b"")
    with pytest.raises(FailedPrecondition, match="another master key"):
        KeyMaterial(tmp_path / "keys", os.urandom(32)).primitive("v1")
    again = KeyMaterial(tmp_path / "keys", read_master(tmp_path))
    assert again.primitive("v1").decrypt(sealed, b"") == b"secret"
    (file,) = (tmp_path / "keys").iterdir()
    file.with_name(f".{file.name}.0123.part").write_bytes(file.read_bytes())  # as a killed rotation leaves it
    again.destroy("v1")
    again.destroy("v1")
    with pytest.raises(FailedPrecondition, match="is missing"):
        again.primitive("v1")
    assert list((tmp_path / "keys").iterdir()) == []


def test_a_master_key_that_others_may_read_or_that_is_none_is_refused(tmp_path: Path) -> None:
    read_master(tmp_path)
    (tmp_path / "credentials" / "master.key").chmod(0o644)
    with pytest.raises(FailedPrecondition, match="chmod 600"):
        read_master(tmp_path)
    with pytest.raises(FailedPrecondition, match="32 bytes"):
        read_master(tmp_path, "c2hvcnQ=")
