"""The part of the assembly that seals: the key service over its master key, and the private folder."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import AsyncExitStack
from pathlib import Path

from sarto.control import projects
from sarto.settings import Settings
from sarto.storage.database import Database
from sarto.storage.key_material import KeyMaterial
from sarto.storage.keys import KeyName, KeyService
from sarto.storage.master_key import read_master
from sarto.storage.private import PrivateFolder, is_memory, place_for

logger = logging.getLogger(__name__)


def key_service(settings: Settings, data: Path, database: Database) -> KeyService:
    """Raises FailedPrecondition when the master key cannot be read."""
    master = read_master(
        data, settings.master_key.get_secret_value(), settings.master_key_file,
        in_keyring=settings.master_key_keyring,
    )  # fmt: skip
    material = KeyMaterial(data / "keys", master)
    return KeyService(
        database, material, _canonical(database, settings.external_keys), settings.vault_token.get_secret_value()
    )


def _canonical(database: Database, external: Mapping[str, str]) -> dict[str, str]:
    """Names of keys with the number of their project, where its id was written and is known."""
    made = {}
    for text, uri in external.items():
        name = KeyName.parse(text)
        owner = projects.find(database, name.project)
        made[str(KeyName(owner.number, name.location, name.ring, name.key) if owner else name)] = uri
    return made


def private_folder(stack: AsyncExitStack, settings: Settings) -> PrivateFolder:
    """Empty of what processes left that are gone; closed with the stack."""
    private = PrivateFolder(place_for(settings.home, settings.private_folder))
    private.sweep()
    stack.callback(private.close)
    if not is_memory(private.place):
        logger.warning("opened artifacts lie on a disk", extra={"place": str(private.place)})
    return private
