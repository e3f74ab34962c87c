"""Key rings, keys and versions in the key service's words: create, look, rotate, disable, destroy, restore.

A destroyed version's material goes when its time has come: `tend` does that, and rotates keys that are due.
"""

from __future__ import annotations

import re
from typing import Any

import orjson
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from sarto.control import iam, paging
from sarto.control.auth import Principal
from sarto.control.context import AnyRow
from sarto.control.events import timestamp
from sarto.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from sarto.names import KEY_ID, LocationName
from sarto.storage.keys import (
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
from sarto.storage.tables import crypto_key, crypto_key_version, key_ring

PURPOSE = "ENCRYPT_DECRYPT"
ALGORITHM = "GOOGLE_SYMMETRIC_ENCRYPTION"
DESTROY_SECONDS = 86_400.0
"""How long a version scheduled for destruction may still be restored, unless its key says otherwise."""
LEAST_ROTATION_SECONDS = 86_400.0
_DURATION = re.compile(r"([0-9]{1,9})(\.[0-9]{1,9})?s")


def create_ring(keys: KeyService, principal: Principal, parent: LocationName, ring: str) -> dict[str, Any]:
    """Raises AlreadyExists, InvalidArgument."""
    project = iam.require(keys.database, principal, "cloudkms.keyRings.create", parent.project).number
    name = KeyName(project, parent.location, _checked(ring, "key_ring_id"))
    with keys.database.transaction() as connection:
        if _ring(connection, name) is not None:
            raise AlreadyExists(f"KeyRing {name} already exists.")
        now = keys.database.now(connection)
        connection.execute(key_ring.insert().values(project=project, location=name.location, id=ring, create_time=now))
    return {"name": str(name), "createTime": timestamp(now)}


def get_ring(keys: KeyService, principal: Principal, name: KeyName) -> dict[str, Any]:
    name = _ours(keys, principal, "cloudkms.keyRings.get", name)
    with keys.database.reading() as connection:
        return _ring_resource(_known_ring(connection, name))


def list_rings(
    keys: KeyService, principal: Principal, parent: LocationName, page_size: int, page_token: str
) -> tuple[list[dict[str, Any]], str]:
    project = iam.require(keys.database, principal, "cloudkms.keyRings.list", parent.project).number
    scope = ("keyRings", project, parent.location)
    size, after = paging.page_size(page_size), paging.start(page_token, *scope)
    query = sa.select(key_ring).where(key_ring.c.project == project, key_ring.c.id > after)
    if parent.location != "-":
        query = query.where(key_ring.c.location == parent.location)
    with keys.database.reading() as connection:
        rows = connection.execute(query.order_by(key_ring.c.id).limit(size + 1)).all()
    more = paging.token(rows[size - 1].id, *scope) if len(rows) > size else ""
    return [_ring_resource(row) for row in rows[:size]], more


def create_key(keys: KeyService, principal: Principal, ring: KeyName, key: str, body: dict[str, Any]) -> dict[str, Any]:
    """A key with its first version, enabled. Raises AlreadyExists, NotFound for its ring, InvalidArgument."""
    ring = _ours(keys, principal, "cloudkms.cryptoKeys.create", ring)
    name = KeyName(ring.project, ring.location, ring.ring, _checked(key, "crypto_key_id"))
    if body.get("purpose", PURPOSE) != PURPOSE:
        raise InvalidArgument.field("crypto_key.purpose", f'Only {PURPOSE} is had here, not "{body["purpose"]}".')
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
        return _key_resource(connection, find_key(connection, name))


def get_key(keys: KeyService, principal: Principal, name: KeyName) -> dict[str, Any]:
    name = _ours(keys, principal, "cloudkms.cryptoKeys.get", name)
    with keys.database.reading() as connection:
        return _key_resource(connection, find_key(connection, name))


def list_keys(
    keys: KeyService, principal: Principal, ring: KeyName, page_size: int, page_token: str
) -> tuple[list[dict[str, Any]], str]:
    ring = _ours(keys, principal, "cloudkms.cryptoKeys.list", ring)
    size, after = paging.page_size(page_size), paging.start(page_token, "cryptoKeys", str(ring))
    query = sa.select(crypto_key).where(
        crypto_key.c.project == ring.project,
        crypto_key.c.location == ring.location,
        crypto_key.c.ring == ring.ring,
        crypto_key.c.id > after,
    )
    with keys.database.reading() as connection:
        _known_ring(connection, ring)
        rows = connection.execute(query.order_by(crypto_key.c.id).limit(size + 1)).all()
        made = [_key_resource(connection, row) for row in rows[:size]]
    return made, paging.token(rows[size - 1].id, "cryptoKeys", str(ring)) if len(rows) > size else ""


def update_key(
    keys: KeyService, principal: Principal, name: KeyName, body: dict[str, Any], mask: list[str]
) -> dict[str, Any]:
    """Change labels, rotation, or how long a destruction waits. Raises InvalidArgument for any other field."""
    name = _ours(keys, principal, "cloudkms.cryptoKeys.update", name)
    with keys.database.transaction() as connection:
        row = find_key(connection, name, lock=True)
        kept = orjson.loads(row.resource)
        asked = {field: body.get(field) for field in mask}
        resource = _settled(asked, kept)
        now = keys.database.now(connection)
        _write_key(
            connection, row, resource=orjson.dumps(resource).decode(), next_rotation=_next_rotation(resource, now)
        )
        return _key_resource(connection, find_key(connection, name))


def set_primary(keys: KeyService, principal: Principal, name: KeyName, version: str) -> dict[str, Any]:
    """Raises FailedPrecondition for a version that is not enabled."""
    name = _ours(keys, principal, "cloudkms.cryptoKeys.update", name)
    if not (version.isascii() and version.isdigit() and len(version) < 8):
        raise InvalidArgument.field("crypto_key_version_id", f'"{version}" is not a version of a key')
    with keys.database.transaction() as connection:
        row = find_key(connection, name, lock=True)
        found = find_version(connection, name.version_name(int(version)))
        if found.state != ENABLED:
            raise FailedPrecondition(f"Version {version} is {found.state}; only an enabled version can be primary.")
        _write_key(connection, row, primary_version=found.version)
        return _key_resource(connection, find_key(connection, name))


def create_version(keys: KeyService, principal: Principal, name: KeyName) -> dict[str, Any]:
    """A new version; it is not primary until `set_primary`."""
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
    size, after = paging.page_size(page_size), paging.start(page_token, "cryptoKeyVersions", str(name))
    table = crypto_key_version
    query = sa.select(table).where(versions_of(name), table.c.version > int(after or 0)).order_by(table.c.version)
    with keys.database.reading() as connection:
        find_key(connection, name)
        rows = connection.execute(query.limit(size + 1)).all()
    more = paging.token(str(rows[size - 1].version), "cryptoKeyVersions", str(name)) if len(rows) > size else ""
    return [_version_resource(row, name) for row in rows[:size]], more


def set_state(keys: KeyService, principal: Principal, name: KeyName, state: str) -> dict[str, Any]:
    """Enable or disable a version. Raises FailedPrecondition for one whose destruction is asked for or done."""
    if state not in (ENABLED, DISABLED):
        raise InvalidArgument.field(
            "crypto_key_version.state", f'"{state}" cannot be set; use {ENABLED} or {DISABLED}.'
        )
    name = _ours(keys, principal, "cloudkms.cryptoKeyVersions.update", name)
    return _moved(keys, name, (ENABLED, DISABLED), {"state": state})


def destroy(keys: KeyService, principal: Principal, name: KeyName) -> dict[str, Any]:
    """Schedule a version's destruction; when its key waits 0 seconds the material is gone at once."""
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
    """Take a scheduled destruction back; the version is disabled until it is enabled."""
    name = _ours(keys, principal, "cloudkms.cryptoKeyVersions.restore", name)
    return _moved(keys, name, (DESTROY_SCHEDULED,), {"state": DISABLED, "destroy_time": None})


def tend(keys: KeyService) -> int:
    """Destroy and rotate what is due; gives how many versions were destroyed. Safe to repeat, and after a crash."""
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
    project = iam.require(keys.database, principal, permission, name.project, on).number
    return KeyName(project, name.location, name.ring, name.key, name.version)


def _checked(text: str, field: str) -> str:
    if not KEY_ID.fullmatch(text):
        raise InvalidArgument.field(field, f'"{text}" is not allowed: 1 to 63 letters, digits, "_" and "-".')
    return text


def _settled(asked: dict[str, Any], kept: dict[str, Any]) -> dict[str, Any]:
    """`kept` with what was asked for. Raises InvalidArgument for what cannot be set or kept."""
    made = {"destroyScheduledDuration": f"{DESTROY_SECONDS:g}s", **kept}
    for field, value in asked.items():
        if field in ("rotationPeriod", "destroyScheduledDuration"):
            if value is not None and not (isinstance(value, str) and _DURATION.fullmatch(value)):
                raise InvalidArgument.field(f"crypto_key.{field}", f'"{value}" is not a duration such as 86400s.')
        elif field == "labels":
            is_good = isinstance(value or {}, dict) and all(isinstance(x, str) for x in (value or {}).values())
            if not is_good:
                raise InvalidArgument.field("crypto_key.labels", "Labels are an object of texts.")
        elif field not in ("purpose", "name"):
            raise InvalidArgument.field(f"crypto_key.{field}", "This field cannot be set here.")
        else:
            continue
        made[field] = value
    if made.get("rotationPeriod") and _seconds(made, "rotationPeriod") < LEAST_ROTATION_SECONDS:
        raise InvalidArgument.field("crypto_key.rotation_period", "A rotation period is at least 86400s.")
    return {field: value for field, value in made.items() if value not in (None, {}, "")}


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
    made = {
        "name": str(name),
        "purpose": PURPOSE,
        "primary": _version_resource(primary, name),
        "versionTemplate": {"protectionLevel": "SOFTWARE", "algorithm": ALGORITHM},
        "createTime": timestamp(row.create_time),
        **orjson.loads(row.resource),
    }
    return made | ({"nextRotationTime": timestamp(row.next_rotation)} if row.next_rotation is not None else {})


def _version_resource(row: AnyRow, name: KeyName) -> dict[str, Any]:
    made = {
        "name": str(name.version_name(row.version)),
        "state": row.state,
        "protectionLevel": "SOFTWARE",
        "algorithm": ALGORITHM,
        "createTime": timestamp(row.create_time),
        "generateTime": timestamp(row.create_time),
    }
    if row.destroy_time is not None:
        made["destroyTime"] = timestamp(row.destroy_time)
    if row.destroyed_at is not None:
        made["destroyEventTime"] = timestamp(row.destroyed_at)
    return made


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
    """The next version, enabled; `key` is held by this transaction."""
    name = name.version_name(0)
    last = connection.execute(
        sa.select(sa.func.max(crypto_key_version.c.version)).where(versions_of(name))
    ).scalar_one()
    added = name.version_name(last + 1)
    _insert_version(keys, connection, added, keys.database.now(connection))
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
    """A compare-and-set of a version's state. Raises FailedPrecondition for a state that has no such move."""
    with keys.database.transaction() as connection:
        found = find_version(connection, name)
        written = connection.execute(
            crypto_key_version.update()
            .where(versions_of(name), crypto_key_version.c.state.in_(allowed))
            .values(**values)
        )
        if not written.rowcount:
            raise FailedPrecondition(f"{name} is {found.state}; this needs one of {', '.join(allowed)}.")
        return _version_resource(find_version(connection, name), name)
