"""The folder with the bytes that a database's rows name, and that it is that folder and no other.

Both hold the same id. A server that opened another folder would find none of the files, and its collection of leftovers
would take the files of a foreign database for leftovers.
"""

from __future__ import annotations

import secrets
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from sarto.errors import FailedPrecondition
from sarto.storage.database import Database
from sarto.storage.tables import meta

ID_FILE = "data.id"
ID_KEY, PATH_KEY = "data_folder.id", "data_folder.path"


def claim(database: Database, folder: Path) -> None:
    """Mark a new pair of database and folder as belonging together, or see that they do. Raises FailedPrecondition."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with database.transaction() as connection:
        known, place = _read(connection, ID_KEY), _read(connection, PATH_KEY)
        found = _written(folder)
        if known and found != known:
            raise FailedPrecondition(
                f"The database belongs to the data folder {place}, and {folder} is not that folder. Servers that share"
                " a database share its data folder too: set data_folder to it, on every one."
            )
        if not known and found and _holds_objects(folder):
            raise FailedPrecondition(
                f"The folder {folder} holds the objects of another database, and this one is new. Name that database"
                f" with database_url, or another folder; to give those objects up, remove {folder / 'objects'}."
            )
        if not database.is_sqlite and place and place != str(folder):
            raise FailedPrecondition(
                f"The servers of this database have the data folder at {place}; have it there too, not at {folder}:"
                " rows name files by their whole path."
            )
        if not known:
            known = found or secrets.token_hex(16)
            if not found:
                part = folder / f".{ID_FILE}.{secrets.token_hex(4)}"
                part.write_text(f"{known}\n")
                part.replace(folder / ID_FILE)
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
