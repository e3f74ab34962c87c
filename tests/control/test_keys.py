"""The life of a customer key: created, rotated, disabled, enabled, destroyed, restored."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from sarto.control import keys
from sarto.control.auth import Principal
from sarto.control.context import Control
from sarto.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, PermissionDenied
from sarto.names import LocationName
from sarto.storage.key_material import KeyMaterial
from sarto.storage.keys import KeyName, KeyService
from sarto.storage.master_key import read_master
from sarto.storage.tables import crypto_key
from tests.control.homes import add_project, member
from tests.control.vault import Vault

PLACE = LocationName("demo", "us-central1")
RING = KeyName("demo", "us-central1", "ring")


@pytest.fixture
def service(any_control: Control) -> KeyService:
    home = any_control.home
    return KeyService(any_control.database, KeyMaterial(home / "keys", read_master(home)))


@pytest.fixture
def owner(any_control: Control) -> Principal:
    return member(any_control)


def make_key(service: KeyService, owner: Principal, **body: object) -> KeyName:
    keys.create_ring(service, owner, PLACE, "ring")
    return KeyName.parse(keys.create_key(service, owner, RING, "key", dict(body))["name"])


def test_a_rotated_key_wraps_under_its_new_version_and_opens_what_the_old_one_wrapped(
    service: KeyService, owner: Principal
) -> None:
    name = make_key(service, owner)
    old = service.wrap(str(name), b"secret", b"here")
    keys.create_version(service, owner, name)
    assert keys.set_primary(service, owner, name, "2")["primary"]["name"].endswith("/cryptoKeyVersions/2")
    new = service.wrap(str(name), b"secret", b"here")
    assert old[:4] != new[:4]
    assert service.unwrap(str(name), old, b"here") == service.unwrap(str(name), new, b"here") == b"secret"
    with pytest.raises(FailedPrecondition, match="changed or moved"):
        service.unwrap(str(name), new, b"elsewhere")
    assert [v["state"] for v in keys.list_versions(service, owner, name, 0, "")[0]] == ["ENABLED", "ENABLED"]


def test_a_disabled_version_neither_wraps_nor_opens_until_it_is_enabled(service: KeyService, owner: Principal) -> None:
    name = make_key(service, owner)
    wrapped = service.wrap(str(name), b"secret", b"")
    first = name.version_name(1)
    keys.set_state(service, owner, first, "DISABLED")
    for use in (lambda: service.wrap(str(name), b"", b""), lambda: service.unwrap(str(name), wrapped, b"")):
        with pytest.raises(FailedPrecondition, match="DISABLED"):
            use()
    keys.set_state(service, owner, first, "ENABLED")
    assert service.unwrap(str(name), wrapped, b"") == b"secret"


def test_a_scheduled_destruction_can_be_taken_back_and_a_done_one_not(service: KeyService, owner: Principal) -> None:
    name = make_key(service, owner)
    first = name.version_name(1)
    assert keys.destroy(service, owner, first)["state"] == "DESTROY_SCHEDULED"
    assert keys.tend(service) == 0
    assert keys.restore(service, owner, first)["state"] == "DISABLED"
    keys.update_key(service, owner, name, {"destroyScheduledDuration": "0s"}, ["destroyScheduledDuration"])
    gone = keys.destroy(service, owner, first)
    assert gone["state"] == "DESTROYED" and "destroyEventTime" in gone
    assert list((service.material._folder).iterdir()) == []
    for change in (keys.restore, keys.destroy):
        with pytest.raises(FailedPrecondition, match="DESTROYED"):
            change(service, owner, first)


def test_a_key_that_is_due_is_rotated_once(service: KeyService, owner: Principal) -> None:
    name = make_key(service, owner, rotationPeriod="86400s")
    with service.database.transaction() as connection:
        connection.execute(sa.update(crypto_key).values(next_rotation=1.0))
    for _ in range(2):
        keys.tend(service)
    assert keys.get_key(service, owner, name)["primary"]["name"].endswith("/2")


def test_names_faults_and_walls(service: KeyService, owner: Principal, any_control: Control) -> None:
    name = make_key(service, owner)
    with pytest.raises(AlreadyExists):
        keys.create_ring(service, owner, PLACE, "ring")
    with pytest.raises(AlreadyExists):
        keys.create_key(service, owner, RING, "key", {})
    with pytest.raises(NotFound):
        keys.create_key(service, owner, KeyName("demo", "us-central1", "none"), "key", {})
    for bad in ("a/b", "..", "", "x" * 64):
        with pytest.raises(InvalidArgument):
            keys.create_key(service, owner, RING, bad, {})
    for body in ({"purpose": "MAC"}, {"rotationPeriod": "1s"}, {"rotationPeriod": "soon"}, {"importOnly": True}):
        with pytest.raises(InvalidArgument):
            keys.create_key(service, owner, RING, "other", body)
    for foreign in (add_project(any_control, "other"), Principal("eve@demo.example", owner.project)):
        with pytest.raises(PermissionDenied):
            keys.get_key(service, foreign, name)


@pytest.fixture
def vault() -> Iterator[str]:
    with Vault() as served:
        yield f"hcvault+http://{served.address}/transit/keys/sarto"


def test_a_key_in_a_vault_wraps_and_opens_bound_to_its_context(control: Control, vault: str) -> None:
    pytest.importorskip("hvac")
    material, name = KeyMaterial(control.home / "keys", bytes(32)), str(RING) + "/cryptoKeys/far"
    service = KeyService(control.database, material, {name: vault}, "root")
    wrapped = service.wrap(name, b"secret", b"here")
    assert service.unwrap(name, wrapped, b"here") == b"secret"
    with pytest.raises(FailedPrecondition, match="another file"):
        service.unwrap(name, wrapped, b"elsewhere")
    with pytest.raises(FailedPrecondition, match="did not encrypt"):
        KeyService(control.database, material, {name: vault}, "wrong").wrap(name, b"secret", b"")


@pytest.mark.parametrize(("uri", "said"), [("aws-kms://arn:aws:kms:x", "awskms"), ("nowhere://x", "no external key")])
def test_an_external_key_without_its_client_is_refused_by_name(control: Control, uri: str, said: str) -> None:
    name = str(RING) + "/cryptoKeys/far"
    service = KeyService(control.database, KeyMaterial(Path("unused"), bytes(32)), {name: uri})
    with pytest.raises(FailedPrecondition, match=said):
        service.wrap(name, b"secret", b"")
