"""The life of a customer key: created, rotated, disabled, enabled, destroyed, restored."""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import pytest
import sqlalchemy as sa

from sarto.control.access.principal import Principal
from sarto.control.context import Control
from sarto.control.keys import kms
from sarto.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, PermissionDenied
from sarto.names import LocationName
from sarto.storage.database.tables import crypto_key
from sarto.storage.encryption import external_kms
from sarto.storage.encryption.envelope import KeyUnusable
from sarto.storage.encryption.key_service import KeyName, KeyService
from sarto.storage.encryption.keyset_store import KeyMaterial
from sarto.storage.encryption.master_key import read_master
from tests.control.homes import add_project, member
from tests.control.keys.vault import Vault

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
    kms.create_ring(service, owner, PLACE, "ring")
    return KeyName.parse(kms.create_key(service, owner, RING, "key", dict(body))["name"])


def test_a_rotated_key_wraps_under_its_new_version_and_opens_what_the_old_one_wrapped(
    service: KeyService, owner: Principal
) -> None:
    name = make_key(service, owner)
    old = service.wrap(str(name), b"secret", b"here")
    kms.create_version(service, owner, name)
    assert kms.set_primary(service, owner, name, "2")["primary"]["name"].endswith("/cryptoKeyVersions/2")
    new = service.wrap(str(name), b"secret", b"here")
    assert old[:4] != new[:4]
    assert service.unwrap(str(name), old, b"here") == service.unwrap(str(name), new, b"here") == b"secret"
    with pytest.raises(FailedPrecondition, match="changed or moved"):
        service.unwrap(str(name), new, b"elsewhere")
    assert [v["state"] for v in kms.list_versions(service, owner, name, 0, "")[0]] == ["ENABLED", "ENABLED"]


def test_a_disabled_version_neither_wraps_nor_opens_until_it_is_enabled(service: KeyService, owner: Principal) -> None:
    name = make_key(service, owner)
    wrapped = service.wrap(str(name), b"secret", b"")
    first = name.version_name(1)
    kms.set_state(service, owner, first, "DISABLED")
    for use in (lambda: service.wrap(str(name), b"", b""), lambda: service.unwrap(str(name), wrapped, b"")):
        with pytest.raises(FailedPrecondition, match="DISABLED"):
            use()
    kms.set_state(service, owner, first, "ENABLED")
    assert service.unwrap(str(name), wrapped, b"") == b"secret"


def test_a_scheduled_destruction_can_be_taken_back_and_a_done_one_not(service: KeyService, owner: Principal) -> None:
    name = make_key(service, owner)
    first = name.version_name(1)
    assert kms.destroy(service, owner, first)["state"] == "DESTROY_SCHEDULED"
    assert kms.tend(service) == 0
    assert kms.restore(service, owner, first)["state"] == "DISABLED"
    kms.update_key(service, owner, name, {"destroyScheduledDuration": "0s"}, ["destroyScheduledDuration"])
    gone = kms.destroy(service, owner, first)
    assert gone["state"] == "DESTROYED" and "destroyEventTime" in gone
    assert list((service.material._folder).iterdir()) == []
    for change in (kms.restore, kms.destroy):
        with pytest.raises(FailedPrecondition, match="DESTROYED"):
            change(service, owner, first)


def test_a_key_that_is_due_is_rotated_once(service: KeyService, owner: Principal) -> None:
    name = make_key(service, owner, rotationPeriod="86400s")
    with service.database.transaction() as connection:
        connection.execute(sa.update(crypto_key).values(next_rotation=1.0))
    for _ in range(2):
        kms.tend(service)
    assert kms.get_key(service, owner, name)["primary"]["name"].endswith("/2")


def test_names_faults_and_walls(service: KeyService, owner: Principal, any_control: Control) -> None:
    name = make_key(service, owner)
    with pytest.raises(AlreadyExists):
        kms.create_ring(service, owner, PLACE, "ring")
    with pytest.raises(AlreadyExists):
        kms.create_key(service, owner, RING, "key", {})
    with pytest.raises(NotFound):
        kms.create_key(service, owner, KeyName("demo", "us-central1", "none"), "key", {})
    for bad in ("a/b", "..", "", "x" * 64):
        with pytest.raises(InvalidArgument):
            kms.create_key(service, owner, RING, bad, {})
    for body in ({"purpose": "MAC"}, {"rotationPeriod": "1s"}, {"rotationPeriod": "soon"}, {"importOnly": True}):
        with pytest.raises(InvalidArgument):
            kms.create_key(service, owner, RING, "other", body)
    for foreign in (add_project(any_control, "other"), Principal("eve@demo.example", owner.project)):
        with pytest.raises(PermissionDenied):
            kms.get_key(service, foreign, name)


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


def test_a_vault_that_never_answers_holds_few_callers_for_a_while_and_no_other_key(
    control: Control, vault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("hvac")
    monkeypatch.setattr(external_kms, "CALL_SECONDS", 3.0)
    monkeypatch.setattr(external_kms, "TURN_SECONDS", 0.1)
    silent, good = str(RING) + "/cryptoKeys/silent", str(RING) + "/cryptoKeys/good"
    with socket.socket() as listener, ThreadPoolExecutor(16) as pool:
        listener.bind(("127.0.0.1", 0))
        listener.listen(64)
        uri = f"hcvault+http://127.0.0.1:{listener.getsockname()[1]}/transit/keys/sarto"
        service = KeyService(
            control.database, KeyMaterial(control.home / "keys", bytes(32)), {silent: uri, good: vault}, "root"
        )
        asked = [pool.submit(service.wrap, silent, b"secret", b"") for _ in range(16)]
        refused = next(as_completed(asked))
        assert "4 calls wait for it already" in str(refused.exception())
        assert service.unwrap(good, service.wrap(good, b"secret", b""), b"") == b"secret"
        words = Counter(str(one.exception()).rpartition(": ")[2] for one in asked)
        assert all(isinstance(one.exception(), KeyUnusable) for one in asked)
        assert words == {"4 calls wait for it already": 12, "no answer within 3 seconds": 4}
        with pytest.raises(KeyUnusable, match="no answer a moment ago"):
            service.wrap(silent, b"secret", b"")


@pytest.mark.parametrize(
    ("uri", "said"), [("aws-kms://arn:aws:kms:x", "awskms"), ("nowhere://x", "not an external key")]
)
def test_an_external_key_without_its_client_is_refused_by_name(control: Control, uri: str, said: str) -> None:
    name = str(RING) + "/cryptoKeys/far"
    service = KeyService(control.database, KeyMaterial(Path("unused"), bytes(32)), {name: uri})
    with pytest.raises(FailedPrecondition, match=said):
        service.wrap(name, b"secret", b"")
