"""Sealed folders in the open: as long as their key allows, and told to whoever holds what was in them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from sarto.control.context import Control
from sarto.control.keys import kms
from sarto.errors import NotFound
from sarto.names import LocationName
from sarto.storage.encryption import unsealed_cache
from sarto.storage.encryption.envelope import KeyUnusable
from sarto.storage.encryption.key_service import KeyName
from tests.control.homes import make_control, member


@pytest.fixture
def control(tmp_path: Path) -> Iterator[Control]:
    made = make_control(tmp_path)
    yield made
    made.sealer.private.close()
    made.database.close()


@pytest.fixture
def name(control: Control) -> KeyName:
    owner, service = member(control), control.sealer.keys
    kms.create_ring(service, owner, LocationName("demo", "us-central1"), "ring")
    return KeyName.parse(kms.create_key(service, owner, KeyName("demo", "us-central1", "ring"), "key", {})["name"])


@pytest.fixture
def folder(control: Control, name: KeyName, tmp_path: Path) -> Path:
    plain, made = tmp_path / "plain", control.adapter_folder("adapters/abc")
    plain.write_bytes(b"weights")
    control.sealer.seal_file(str(name), plain, made / "file", unsealed_cache.path_in(made, "file"))
    return made


def test_a_folder_is_opened_once_and_closed_when_its_key_is_disabled(
    control: Control, name: KeyName, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unsealed_cache, "CHECK_SECONDS", 0.0)
    folders = control.sealer.opened
    place = folders.open(folder)
    assert (place / "file").read_bytes() == b"weights" and folders.open(folder) == place and folders.tend() == []
    kms.set_state(control.sealer.keys, member(control), name.version_name(1), "DISABLED")
    with pytest.raises(KeyUnusable):
        folders.open(folder)
    assert not place.exists()
    assert folders.tend() == ["abc"] and folders.tend() == []
    kms.set_state(control.sealer.keys, member(control), name.version_name(1), "ENABLED")
    assert (folders.open(folder) / "file").read_bytes() == b"weights"
    kms.set_state(control.sealer.keys, member(control), name.version_name(1), "DISABLED")
    assert folders.tend() == ["abc"] and not place.exists()


def test_what_nobody_asks_for_is_closed_and_what_is_deleted_is_not_found(
    control: Control, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unsealed_cache, "CHECK_SECONDS", 0.0)
    folders = control.sealer.opened
    place = folders.open(folder)
    with monkeypatch.context() as patch:
        patch.setattr(unsealed_cache, "IDLE_SECONDS", 0.0)
        assert folders.tend() == [] and not place.exists()
    folders.open(folder)
    (folder / "file").unlink()
    with pytest.raises(NotFound):
        folders.open(folder)
