"""The local key service: wraps and unwraps data keys under a customer key, while the key's state allows it.

Key rings, keys and versions are rows; their material is in `keyset_store`. `control.keys.kms` checks the caller's
rights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
import tink
from sqlalchemy.engine import Connection

from sarto.errors import FailedPrecondition, InvalidArgument, NotFound
from sarto.names import KEY_ID, check_location, check_project
from sarto.storage.database.database import Database
from sarto.storage.database.tables import crypto_key, crypto_key_version
from sarto.storage.encryption import external_kms
from sarto.storage.encryption.envelope import KeyUnusable
from sarto.storage.encryption.keyset_store import KeyMaterial

ENABLED, DISABLED = "ENABLED", "DISABLED"
DESTROY_SCHEDULED, DESTROYED = "DESTROY_SCHEDULED", "DESTROYED"
VERSION_BYTES = 4
EXTERNAL = (0).to_bytes(VERSION_BYTES, "big")


@dataclass(frozen=True)
class KeyName:
    """`projects/P/locations/L/keyRings/R[/cryptoKeys/K[/cryptoKeyVersions/N]]`; missing parts are empty or 0."""

    project: str
    location: str
    ring: str
    key: str = ""
    version: int = 0

    def __str__(self) -> str:
        text = f"projects/{self.project}/locations/{self.location}/keyRings/{self.ring}"
        text += f"/cryptoKeys/{self.key}" if self.key else ""
        return text + (f"/cryptoKeyVersions/{self.version}" if self.version else "")

    @classmethod
    def parse(cls, text: str) -> KeyName:
        """Raises InvalidArgument for an invalid name."""
        parts = text.split("/")
        words = ("projects", "locations", "keyRings", "cryptoKeys", "cryptoKeyVersions")
        if len(parts) not in (6, 8, 10) or tuple(parts[::2]) != words[: len(parts) // 2]:
            raise InvalidArgument(
                f'"{text}" is not of the form projects/PROJECT/locations/LOCATION/keyRings/RING/cryptoKeys/KEY.'
            )
        for name in parts[5:8:2]:
            if not KEY_ID.fullmatch(name):
                raise InvalidArgument(f'"{name}" is not a key id: 1 to 63 letters, digits, "_" and "-".')
        version = parts[9] if len(parts) == 10 else "0"
        if not (version.isascii() and version.isdigit() and len(version) < 8):
            raise InvalidArgument(f'"{version}" is not a key version; versions are numbers from 1.')
        key = parts[7] if len(parts) > 6 else ""
        return cls(check_project(parts[1]), check_location(parts[3]), parts[5], key, int(version))

    def version_name(self, version: int) -> KeyName:
        return KeyName(self.project, self.location, self.ring, self.key, version)


@dataclass(frozen=True)
class KeyService:
    """Wraps under keys by their name with the project's number. `external` maps names to URIs of other services."""

    database: Database
    material: KeyMaterial
    external: Mapping[str, str] = field(default_factory=dict)
    vault_token: str = field(default="", repr=False)

    def wrap(self, key: str, secret: bytes, context: bytes) -> bytes:
        """Wrap the secret under the key's primary version. Raises KeyUnusable, FailedPrecondition, NotFound."""
        if key in self.external:
            return EXTERNAL + external_kms.wrap(self.external[key], secret, context, self.vault_token)
        name = KeyName.parse(key)
        version = self.primary(name)
        primitive = self.material.primitive(str(name.version_name(version)))
        return version.to_bytes(VERSION_BYTES, "big") + bytes(primitive.encrypt(secret, context))

    def unwrap(self, key: str, wrapped: bytes, context: bytes) -> bytes:
        """Unwrap the secret. Raises KeyUnusable or FailedPrecondition when its version cannot be used, now or ever, and
        FailedPrecondition for a secret of another key or context."""
        version, body = wrapped[:VERSION_BYTES], wrapped[VERSION_BYTES:]
        if version == EXTERNAL:
            if key not in self.external:
                raise FailedPrecondition(f"{key} is not in external_keys of this server's settings any more.")
            return external_kms.unwrap(self.external[key], body, context, self.vault_token)
        name = KeyName.parse(key).version_name(int.from_bytes(version, "big"))
        with self.database.reading() as connection:
            check_usable(find_version(connection, name), name)
        try:
            return bytes(self.material.primitive(str(name)).decrypt(body, context))
        except tink.TinkError:
            raise FailedPrecondition(f"The secret wrapped under {name} was changed or moved.") from None

    def is_known(self, key: str) -> bool:
        if key in self.external:
            return True
        try:
            with self.database.reading() as connection:
                find_key(connection, KeyName.parse(key))
        except NotFound:
            return False
        return True

    def check(self, key: str) -> None:
        """Check that `wrap` would succeed. Raises its errors."""
        if key in self.external:
            self.wrap(key, b"", b"check")
        else:
            self.primary(KeyName.parse(key))

    def primary(self, name: KeyName) -> int:
        """The number of the key's primary version. Raises as `check_usable` does, and NotFound."""
        with self.database.reading() as connection:
            key = find_key(connection, name)
            primary = name.version_name(key.primary_version)
            check_usable(find_version(connection, primary), primary)
        return int(key.primary_version)


def find_key(connection: Connection, name: KeyName, *, lock: bool = False) -> sa.Row[Any]:
    """Raises NotFound."""
    query = sa.select(crypto_key).where(
        crypto_key.c.project == name.project,
        crypto_key.c.location == name.location,
        crypto_key.c.ring == name.ring,
        crypto_key.c.id == name.key,
    )
    row = connection.execute(query.with_for_update() if lock else query).first()
    if row is None:
        raise NotFound(f"CryptoKey {KeyName(name.project, name.location, name.ring, name.key)} not found.")
    return row


def versions_of(name: KeyName) -> sa.ColumnElement[bool]:
    """The condition on rows of one version or, for a name without version, of all versions of a key."""
    table = crypto_key_version
    condition = sa.and_(
        table.c.project == name.project,
        table.c.location == name.location,
        table.c.ring == name.ring,
        table.c.key == name.key,
    )
    return sa.and_(condition, table.c.version == name.version) if name.version else condition


def all_versions(database: Database) -> list[str]:
    """The name of every present or destroyed version."""
    with database.reading() as connection:
        rows = connection.execute(sa.select(crypto_key_version)).all()
    return [str(KeyName(row.project, row.location, row.ring, row.key, row.version)) for row in rows]


def find_version(connection: Connection, name: KeyName) -> sa.Row[Any]:
    """Raises NotFound."""
    row = connection.execute(sa.select(crypto_key_version).where(versions_of(name))).first()
    if row is None:
        raise NotFound(f"CryptoKeyVersion {name} not found.")
    return row


def check_usable(row: sa.Row[Any], name: KeyName) -> None:
    """Raises KeyUnusable for a version that may be enabled again, FailedPrecondition for a destroyed one."""
    if row.state != ENABLED:
        kind = FailedPrecondition if row.state == DESTROYED else KeyUnusable
        raise kind(f"{name} is not enabled, current state is: {row.state}.")
