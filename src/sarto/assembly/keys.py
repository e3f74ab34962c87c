"""Assembly of the key service, its master key, and the private folder."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import AsyncExitStack
from pathlib import Path

from sarto.control.access import projects
from sarto.settings import Settings
from sarto.storage.database.database import Database
from sarto.storage.encryption.key_service import KeyName, KeyService
from sarto.storage.encryption.keyset_store import KeyMaterial
from sarto.storage.encryption.master_key import read_master
from sarto.storage.encryption.scratch_folder import PrivateFolder, is_memory, place_for

logger = logging.getLogger(__name__)


def key_service(settings: Settings, data: Path, database: Database) -> KeyService:
    """The key service. Raises FailedPrecondition when the master key cannot be read."""
    master = read_master(
        data, settings.master_key.get_secret_value(), settings.master_key_file,
        in_keyring=settings.master_key_keyring,
    )  # fmt: skip
    material = KeyMaterial(data / "keys", master)
    return KeyService(
        database, material, _canonical(database, settings.external_keys), settings.vault_token.get_secret_value()
    )


def _canonical(database: Database, external: Mapping[str, str]) -> dict[str, str]:
    """Names of keys with the number of their project in place of its id, if it is known."""
    uris = {}
    for text, uri in external.items():
        name = KeyName.parse(text)
        owner = projects.find(database, name.project)
        uris[str(KeyName(owner.number, name.location, name.ring, name.key) if owner else name)] = uri
    return uris


def private_folder(stack: AsyncExitStack, settings: Settings) -> PrivateFolder:
    """The private folder, without the files of ended processes; closed with the stack."""
    private = PrivateFolder(place_for(settings.home, settings.private_folder))
    private.sweep()
    stack.callback(private.close)
    if not is_memory(private.root):
        logger.warning("decrypted files are on a disk", extra={"place": str(private.root)})
    return private
