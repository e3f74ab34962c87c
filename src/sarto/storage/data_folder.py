"""The data folder: the files that the rows of a database name. Checks that folder and database belong together.

Both have the same id. With another folder a server would find none of its files, and its retention would remove the
files of the other database.
"""

from __future__ import annotations

import secrets
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from sarto.errors import FailedPrecondition
from sarto.storage.database.database import Database
from sarto.storage.database.tables import meta
from sarto.system.files import write_whole

ID_FILE = "data.id"
ID_KEY, PATH_KEY = "data_folder.id", "data_folder.path"


def claim(database: Database, folder: Path) -> None:
    """Store an id in a new pair of database and folder, or check the ids of an existing pair. Raises
    FailedPrecondition."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with database.transaction() as connection:
        known, path = _read(connection, ID_KEY), _read(connection, PATH_KEY)
        identity = _written(folder)
        if known and identity != known:
            raise FailedPrecondition(
                f"The database belongs to the data folder that was last at {path}, and {folder} is another one."
                " Servers that share a database share its data folder too: set data_folder to it, on every one."
            )
        if not known and identity and _holds_objects(folder):
            raise FailedPrecondition(
                f"The folder {folder} holds the objects of another database, and this one is new. Name that database"
                f" with database_url, or another folder; to give those objects up, remove {folder / 'objects'}."
            )
        if not known:
            known = identity or secrets.token_hex(16)
            if not identity:
                write_whole(folder / ID_FILE, f"{known}\n".encode())
            connection.execute(meta.insert().values(key=ID_KEY, value=known))
        connection.execute(meta.delete().where(meta.c.key == PATH_KEY))
        connection.execute(meta.insert().values(key=PATH_KEY, value=str(folder)))


def _read(connection: Connection, key: str) -> str:
    return str(connection.execute(sa.select(meta.c.value).where(meta.c.key == key)).scalar() or "")


def _written(folder: Path) -> str:
    try:
        return (folder / ID_FILE).read_text().strip()
    except FileNotFoundError:
        return ""


def _holds_objects(folder: Path) -> bool:
    return any((folder / "objects").glob("*/*"))
