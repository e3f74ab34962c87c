"""Key rings, keys and versions in Cloud KMS's form: create, get, list, rotate, disable, destroy, restore.

A destroyed version keeps its material until its date of destruction. `tend` then removes it, and rotates due keys.
"""

from __future__ import annotations

import re
from typing import Any

import orjson
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from sarto.control.access import authorization
from sarto.control.access.principal import Principal
from sarto.control.aip import pages
from sarto.control.aip.times import timestamp
from sarto.control.context import AnyRow
from sarto.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from sarto.names import KEY_ID, LocationName
from sarto.storage.database.database import report
from sarto.storage.database.tables import crypto_key, crypto_key_version, key_ring
from sarto.storage.encryption.key_service import (
    DESTROY_SCHEDULED,
    DESTROYED,
    DISABLED,
    ENABLED,
    KeyName,
    KeyService,
    find_key,
    find_version,
    versions_of,
)

PURPOSE = "ENCRYPT_DECRYPT"
ALGORITHM = "GOOGLE_SYMMETRIC_ENCRYPTION"
DESTROY_SECONDS = 86_400.0
"""Time for which a version scheduled for destruction can be restored, unless its key sets another."""
LEAST_ROTATION_SECONDS = 86_400.0
_DURATION = re.compile(r"([0-9]{1,9})(\.[0-9]{1,9})?s")


def create_ring(keys: KeyService, principal: Principal, parent: LocationName, ring: str) -> dict[str, Any]:
    """Create a key ring. Raises AlreadyExists, InvalidArgument."""
    project = authorization.require(keys.database, principal, "cloudkms.keyRings.create", parent.project).number
    name = KeyName(project, parent.location, _checked(ring, "key_ring_id"))
    with keys.database.transaction() as connection:
        if _ring(connection, name) is not None:
            raise AlreadyExists(f"KeyRing {name} already exists.")
        now = keys.database.now(connection)
        connection.execute(key_ring.insert().values(project=project, location=name.location, id=ring, create_time=now))
        report(connection, "cloudkms.keyRings.create", project, str(name))
    return {"name": str(name), "createTime": timestamp(now)}


def get_ring(keys: KeyService, principal: Principal, name: KeyName) -> dict[str, Any]:
    name = _ours(keys, principal, "cloudkms.keyRings.get", name)
    with keys.database.reading() as connection:
        return _ring_resource(_known_ring(connection, name))


def list_rings(
    keys: KeyService, principal: Principal, parent: LocationName, page_size: int, page_token: str
) -> tuple[list[dict[str, Any]], str]:
    project = authorization.require(keys.database, principal, "cloudkms.keyRings.list", parent.project).number
    page = pages.requested(page_size, page_token, "keyRings", project, parent.location)
    query = sa.select(key_ring).where(pages.within(key_ring, project, parent.location))
    with keys.database.reading() as connection:
        rows, more = page.read(connection, query, key_ring.c.id, ascending=True)
    return [_ring_resource(row) for row in rows], more


def create_key(keys: KeyService, principal: Principal, ring: KeyName, key: str, body: dict[str, Any]) -> dict[str, Any]:
    """Create a key with its first version, enabled. Raises AlreadyExists, NotFound for its ring, InvalidArgument."""
    ring = _ours(keys, principal, "cloudkms.cryptoKeys.create", ring)
    name = KeyName(ring.project, ring.location, ring.ring, _checked(key, "crypto_key_id"))
    if body.get("purpose", PURPOSE) != PURPOSE:
        raise InvalidArgument.field(
            "crypto_key.purpose", f'Only purpose {PURPOSE} is supported, not "{body["purpose"]}".'
        )
    resource = _settled(body, {})
    with keys.database.transaction() as connection:
        _known_ring(connection, ring)
        try:
            find_key(connection, name)
        except NotFound:
            pass
        else:
            raise AlreadyExists(f"CryptoKey {name} already exists.")
        now = keys.database.now(connection)
        row = {
            "project": name.project,
            "location": name.location,
            "ring": name.ring,
            "id": name.key,
            "primary_version": 1,
            "resource": orjson.dumps(resource).decode(),
            "next_rotation": _next_rotation(resource, now),
            "create_time": now,
        }
        connection.execute(crypto_key.insert().values(row))
        _insert_version(keys, connection, name.version_name(1), now)
        report(connection, "cloudkms.cryptoKeys.create", name.project, str(name))
        return _key_resource(connection, find_key(connection, name))


def get_key(keys: KeyService, principal: Principal, name: KeyName) -> dict[str, Any]:
    name = _ours(keys, principal, "cloudkms.cryptoKeys.get", name)
    with keys.database.reading() as connection:
        return _key_resource(connection, find_key(connection, name))


def list_keys(
    keys: KeyService, principal: Principal, ring: KeyName, page_size: int, page_token: str
) -> tuple[list[dict[str, Any]], str]:
    ring = _ours(keys, principal, "cloudkms.cryptoKeys.list", ring)
    page = pages.requested(page_size, page_token, "cryptoKeys", str(ring))
    query = sa.select(crypto_key).where(
        crypto_key.c.project == ring.project, crypto_key.c.location == ring.location, crypto_key.c.ring == ring.ring
    )
    with keys.database.reading() as connection:
        _known_ring(connection, ring)
        rows, more = page.read(connection, query, crypto_key.c.id, ascending=True)
        return [_key_resource(connection, row) for row in rows], more


def update_key(
    keys: KeyService, principal: Principal, name: KeyName, body: dict[str, Any], mask: list[str]
) -> dict[str, Any]:
    """Change labels, rotation, or the delay of a destruction. Raises InvalidArgument for any other field."""
    name = _ours(keys, principal, "cloudkms.cryptoKeys.update", name)
    with keys.database.transaction() as connection:
        row = find_key(connection, name, lock=True)
        stored = orjson.loads(row.resource)
        changes = {field: body.get(field) for field in mask}
        resource = _settled(changes, stored)
        now = keys.database.now(connection)
        _write_key(
            connection, row, resource=orjson.dumps(resource).decode(), next_rotation=_next_rotation(resource, now)
        )
        return _key_resource(connection, find_key(connection, name))


def set_primary(keys: KeyService, principal: Principal, name: KeyName, version: str) -> dict[str, Any]:
    """Make a version primary. Raises FailedPrecondition for a version that is not enabled."""
    name = _ours(keys, principal, "cloudkms.cryptoKeys.update", name)
    if not (version.isascii() and version.isdigit() and len(version) < 8):
        raise InvalidArgument.field("crypto_key_version_id", f'"{version}" is not a version of a key.')
    with keys.database.transaction() as connection:
        row = find_key(connection, name, lock=True)
        version_row = find_version(connection, name.version_name(int(version)))
        if version_row.state != ENABLED:
            raise FailedPrecondition(
                f"Version {version} is {version_row.state}; only an enabled version can be primary."
            )
        _write_key(connection, row, primary_version=version_row.version)
        return _key_resource(connection, find_key(connection, name))


def create_version(keys: KeyService, principal: Principal, name: KeyName) -> dict[str, Any]:
    """Create a version; it is not primary until `set_primary`."""
    name = _ours(keys, principal, "cloudkms.cryptoKeyVersions.create", name)
    with keys.database.transaction() as connection:
        row = find_key(connection, name, lock=True)
        return _version_resource(_add_version(keys, connection, name, row), name)


def get_version(keys: KeyService, principal: Principal, name: KeyName) -> dict[str, Any]:
    name = _ours(keys, principal, "cloudkms.cryptoKeyVersions.get", name)
    with keys.database.reading() as connection:
        return _version_resource(find_version(connection, name), name)


def list_versions(
    keys: KeyService, principal: Principal, name: KeyName, page_size: int, page_token: str
) -> tuple[list[dict[str, Any]], str]:
    name = _ours(keys, principal, "cloudkms.cryptoKeyVersions.list", name)
    page = pages.requested(page_size, page_token, "cryptoKeyVersions", str(name))
    query, version = sa.select(crypto_key_version).where(versions_of(name)), crypto_key_version.c.version
    with keys.database.reading() as connection:
        find_key(connection, name)
        rows, more = page.read(connection, query, version, ascending=True)
    return [_version_resource(row, name) for row in rows], more


def set_state(keys: KeyService, principal: Principal, name: KeyName, state: str) -> dict[str, Any]:
    """Enable or disable a version. Raises FailedPrecondition for one that is scheduled for destruction or destroyed."""
    if state not in (ENABLED, DISABLED):
        raise InvalidArgument.field(
            "crypto_key_version.state", f'"{state}" cannot be set; use {ENABLED} or {DISABLED}.'
        )
    name = _ours(keys, principal, "cloudkms.cryptoKeyVersions.update", name)
    return _moved(keys, name, (ENABLED, DISABLED), {"state": state})


def destroy(keys: KeyService, principal: Principal, name: KeyName) -> dict[str, Any]:
    """Schedule a version's destruction; with a delay of 0 seconds its material is removed at once."""
    name = _ours(keys, principal, "cloudkms.cryptoKeyVersions.destroy", name)
    with keys.database.reading() as connection:
        key = find_key(connection, name)
        due = keys.database.now(connection) + _seconds(orjson.loads(key.resource), "destroyScheduledDuration")
    changed = _moved(keys, name, (ENABLED, DISABLED), {"state": DESTROY_SCHEDULED, "destroy_time": due})
    if tend(keys):
        with keys.database.reading() as connection:
            return _version_resource(find_version(connection, name), name)
    return changed


def restore(keys: KeyService, principal: Principal, name: KeyName) -> dict[str, Any]:
    """Cancel a scheduled destruction; the version stays disabled until it is enabled."""
    name = _ours(keys, principal, "cloudkms.cryptoKeyVersions.restore", name)
    return _moved(keys, name, (DESTROY_SCHEDULED,), {"state": DISABLED, "destroy_time": None})


def tend(keys: KeyService) -> int:
    """Destroy and rotate due keys; returns the number of destroyed versions. Safe to repeat, also after a crash."""
    table = crypto_key_version
    with keys.database.reading() as connection:
        now = keys.database.now(connection)
        is_due = sa.and_(table.c.state == DESTROY_SCHEDULED, table.c.destroy_time <= now)
        due = connection.execute(sa.select(table).where(is_due)).all()
        rotating = connection.execute(sa.select(crypto_key).where(crypto_key.c.next_rotation <= now)).all()
    done = 0
    for row in due:
        name = KeyName(row.project, row.location, row.ring, row.key, row.version)
        with keys.database.transaction() as connection:
            written = connection.execute(
                table.update().where(versions_of(name), is_due).values(state=DESTROYED, destroyed_at=now)
            )
            if written.rowcount:
                keys.material.destroy(str(name))
                done += 1
    for row in rotating:
        name = KeyName(row.project, row.location, row.ring, row.id)
        with keys.database.transaction() as connection:
            key = find_key(connection, name, lock=True)
            if key.next_rotation is not None and key.next_rotation <= now:
                version = _add_version(keys, connection, name, key)
                period = _seconds(orjson.loads(key.resource), "rotationPeriod")
                _write_key(connection, key, primary_version=version.version, next_rotation=now + period)
    return done


def _ours(keys: KeyService, principal: Principal, permission: str, name: KeyName) -> KeyName:
    """The name with the project's number. Raises PermissionDenied."""
    on = str(KeyName(name.project, name.location, name.ring, name.key)).removeprefix(f"projects/{name.project}/")
    project = authorization.require(keys.database, principal, permission, name.project, on).number
    return KeyName(project, name.location, name.ring, name.key, name.version)


def _checked(text: str, field: str) -> str:
    if not KEY_ID.fullmatch(text):
        raise InvalidArgument.field(field, f'"{text}" is not allowed: 1 to 63 letters, digits, "_" and "-".')
    return text


def _settled(changes: dict[str, Any], stored: dict[str, Any]) -> dict[str, Any]:
    """`stored` with the requested changes. Raises InvalidArgument for a field that cannot be set."""
    settled = {"destroyScheduledDuration": f"{DESTROY_SECONDS:g}s", **stored}
    for field, value in changes.items():
        if field in ("rotationPeriod", "destroyScheduledDuration"):
            if value is not None and not (isinstance(value, str) and _DURATION.fullmatch(value)):
                raise InvalidArgument.field(f"crypto_key.{field}", f'"{value}" is not a duration such as 86400s.')
        elif field == "labels":
            is_good = isinstance(value or {}, dict) and all(isinstance(x, str) for x in (value or {}).values())
            if not is_good:
                raise InvalidArgument.field("crypto_key.labels", "Labels must be an object of texts.")
        elif field not in ("purpose", "name"):
            raise InvalidArgument.field(f"crypto_key.{field}", "This field cannot be set here.")
        else:
            continue
        settled[field] = value
    if settled.get("rotationPeriod") and _seconds(settled, "rotationPeriod") < LEAST_ROTATION_SECONDS:
        raise InvalidArgument.field("crypto_key.rotation_period", "A rotation period is at least 86400s.")
    return {field: value for field, value in settled.items() if value not in (None, {}, "")}


def _seconds(resource: dict[str, Any], field: str) -> float:
    return float(str(resource.get(field) or "0s").removesuffix("s"))


def _next_rotation(resource: dict[str, Any], now: float) -> float | None:
    return now + _seconds(resource, "rotationPeriod") if resource.get("rotationPeriod") else None


def _ring(connection: Connection, name: KeyName) -> AnyRow | None:
    query = sa.select(key_ring).where(
        key_ring.c.project == name.project, key_ring.c.location == name.location, key_ring.c.id == name.ring
    )
    return connection.execute(query).first()


def _known_ring(connection: Connection, name: KeyName) -> AnyRow:
    row = _ring(connection, name)
    if row is None:
        raise NotFound(f"KeyRing {KeyName(name.project, name.location, name.ring)} not found.")
    return row


def _ring_resource(row: AnyRow) -> dict[str, Any]:
    return {"name": str(KeyName(row.project, row.location, row.id)), "createTime": timestamp(row.create_time)}


def _key_resource(connection: Connection, row: AnyRow) -> dict[str, Any]:
    name = KeyName(row.project, row.location, row.ring, row.id)
    primary = find_version(connection, name.version_name(row.primary_version))
    resource = {
        "name": str(name),
        "purpose": PURPOSE,
        "primary": _version_resource(primary, name),
        "versionTemplate": {"protectionLevel": "SOFTWARE", "algorithm": ALGORITHM},
        "createTime": timestamp(row.create_time),
        **orjson.loads(row.resource),
    }
    return resource | ({"nextRotationTime": timestamp(row.next_rotation)} if row.next_rotation is not None else {})


def _version_resource(row: AnyRow, name: KeyName) -> dict[str, Any]:
    resource = {
        "name": str(name.version_name(row.version)),
        "state": row.state,
        "protectionLevel": "SOFTWARE",
        "algorithm": ALGORITHM,
        "createTime": timestamp(row.create_time),
        "generateTime": timestamp(row.create_time),
    }
    if row.destroy_time is not None:
        resource["destroyTime"] = timestamp(row.destroy_time)
    if row.destroyed_at is not None:
        resource["destroyEventTime"] = timestamp(row.destroyed_at)
    return resource


def _write_key(connection: Connection, row: AnyRow, **values: Any) -> None:
    connection.execute(
        crypto_key.update()
        .where(
            crypto_key.c.project == row.project,
            crypto_key.c.location == row.location,
            crypto_key.c.ring == row.ring,
            crypto_key.c.id == row.id,
        )
        .values(**values)
    )


def _add_version(keys: KeyService, connection: Connection, name: KeyName, key: AnyRow) -> AnyRow:
    """Add the next version, enabled; `key` is locked by this transaction."""
    name = name.version_name(0)
    last = connection.execute(
        sa.select(sa.func.max(crypto_key_version.c.version)).where(versions_of(name))
    ).scalar_one()
    added = name.version_name(last + 1)
    _insert_version(keys, connection, added, keys.database.now(connection))
    report(connection, "cloudkms.cryptoKeyVersions.create", added.project, str(added))
    return find_version(connection, added)


def _insert_version(keys: KeyService, connection: Connection, name: KeyName, now: float) -> None:
    keys.material.create(str(name))
    connection.execute(
        crypto_key_version.insert().values(
            project=name.project,
            location=name.location,
            ring=name.ring,
            key=name.key,
            version=name.version,
            state=ENABLED,
            create_time=now,
        )
    )


def _moved(keys: KeyService, name: KeyName, allowed: tuple[str, ...], values: dict[str, Any]) -> dict[str, Any]:
    """A compare-and-set of a version's state. Raises FailedPrecondition for a state without this transition."""
    with keys.database.transaction() as connection:
        version_row = find_version(connection, name)
        written = connection.execute(
            crypto_key_version.update()
            .where(versions_of(name), crypto_key_version.c.state.in_(allowed))
            .values(**values)
        )
        if not written.rowcount:
            raise FailedPrecondition(f"{name} is {version_row.state}; this needs one of {', '.join(allowed)}.")
        return _version_resource(find_version(connection, name), name)
