"""A backup of a whole home while its service runs, and the restore of a home from it.

The database is copied by SQLite's online backup. Bytes of buckets and adapters do not change once they have a name, so
the backup only needs every file that the copied database refers to. Base weights are not part of a home.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sqlite3
import time
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path

from sarto.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, ResourceExhausted
from sarto.storage.buckets.objects import content_name
from sarto.system.files import whole_folder

MANIFEST = "backup.json"
DATABASE = "sarto.db"
NOT_COPIED = frozenset(
    {"cache", "private", "sockets", "uploads", "logs", "address", "grpc_address", "serve.lock", MANIFEST}
)
MOST_ROUNDS = 20
FORM = 1
REFERRING = ("object", "held_object")
"""Tables whose rows refer to blobs; the second is missing in the home of an older version."""


def save(home: Path, target: Path) -> dict[str, object]:
    """Copy `home` to the new folder `target`; returns the manifest. The folder appears when it is complete.

    Raises AlreadyExists, NotFound, ResourceExhausted, and FailedPrecondition when objects change during every try."""
    if not (home / DATABASE).exists():
        raise NotFound(f"{home} holds no {DATABASE}: it is not the home of a service on SQLite.")
    if target.exists():
        raise AlreadyExists(f"{target} exists; name a folder that does not.")
    if target.resolve().is_relative_to(home.resolve()):
        raise InvalidArgument(f"{target} is inside the home; name a folder outside, best on another disk.")
    try:
        with whole_folder(target, 0o700) as part:
            _copy_home(home, part)
            _copy_database(home, part)
            manifest = {
                "form": FORM,
                "home": str(home),
                "time": time.time(),
                "files": {str(path.relative_to(part)): _digest(path) for path in _files(part)},
            }
            (part / MANIFEST).write_text(json.dumps(manifest, indent=1))
            os.sync()
    except OSError as error:
        raise ResourceExhausted(f"The backup to {target} could not be written: {error.strerror}.") from error
    return manifest


def restore(source: Path, home: Path) -> dict[str, object]:
    """Create the new folder `home` from a backup, with a check of each file; returns the manifest.

    Raises NotFound, AlreadyExists, and FailedPrecondition with a file that is missing or changed."""
    try:
        manifest: dict[str, object] = json.loads((source / MANIFEST).read_text())
    except (OSError, ValueError):
        raise NotFound(f"{source} is not a backup: it has no {MANIFEST} that can be read.") from None
    if manifest.get("form") != FORM:
        raise FailedPrecondition(f"{source} was made by a newer version of Sarto; restore it with that one.")
    if home.exists() and any(home.iterdir()):
        raise AlreadyExists(f"The home {home} is not empty; name a folder that is, or does not exist.")
    files = manifest["files"]
    assert isinstance(files, dict)
    try:
        with whole_folder(home, 0o700) as part:
            for name, digest in files.items():
                _restore_file(source, part, name, digest)
            os.sync()
    except OSError as error:
        raise ResourceExhausted(f"The home {home} could not be written: {error.strerror}.") from error
    return manifest


def _copy_home(home: Path, target: Path) -> None:
    """Copy everything but the database. A file that vanishes meanwhile was not needed; unfinished files have names with
    a dot."""
    left_out = (".", DATABASE)
    paths = (path for path in home.iterdir() if path.name not in NOT_COPIED and not path.name.startswith(left_out))
    _copy_all(sorted(paths), target)


def _copy_folder(source: Path, target: Path) -> None:
    target.mkdir(mode=0o700, exist_ok=True)
    try:  # a resume point before its history, which only grows
        paths = sorted(source.iterdir(), key=lambda path: (path.suffix != ".safetensors", path.name))
    except FileNotFoundError:
        return
    _copy_all((path for path in paths if not path.name.startswith(".") and not path.is_symlink()), target)


def _copy_all(paths: Iterable[Path], target: Path) -> None:
    for path in paths:
        if path.is_dir():
            _copy_folder(path, target / path.name)
        else:
            _copy(path, target / path.name)


def _copy_database(home: Path, target: Path) -> None:
    """Copy a consistent database and all its files; repeated while files are removed in between."""
    for _ in range(MOST_ROUNDS):
        (target / DATABASE).unlink(missing_ok=True)
        with closing(sqlite3.connect(home / DATABASE)) as live, closing(sqlite3.connect(target / DATABASE)) as copy:
            live.backup(copy)
            copy.execute("pragma journal_mode=delete")
            blobs = [home / "objects" / name[:2] / name for name in _referred(copy)]
            adapters = copy.execute("select distinct adapter_digest from checkpoint").fetchall()
        for (digest,) in adapters:
            if not (target / "adapters" / digest).is_dir() and (home / "adapters" / digest).is_dir():
                _copy_folder(home / "adapters" / digest, target / "adapters" / digest)
        missing = [path for path in blobs if not (target / path.relative_to(home)).exists()]
        if all(_copy(path, target / path.relative_to(home)) for path in missing):
            return
    raise FailedPrecondition(
        "Objects were removed faster than they could be copied; try again when there is less load."
    )


def _referred(database: sqlite3.Connection) -> set[str]:
    there = {name for (name,) in database.execute("select name from sqlite_master where type = 'table'")}
    owner = "coalesce(json_extract(resource, '$.owner'), json_extract(resource, '$.fields.owner'), '')"
    queries = (
        database.execute(f"select distinct sha256, {owner} from {table}") for table in REFERRING if table in there
    )
    return {content_name(*row) for rows in queries for row in rows}


def _copy(source: Path, target: Path) -> bool:
    """Copy a file; False if it no longer exists."""
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        shutil.copy2(source, target)
    except FileNotFoundError:
        return False
    return True


def _restore_file(source: Path, target: Path, name: str, digest: str) -> None:
    destination = (target / name).resolve()
    if not destination.is_relative_to(target.resolve()):
        raise FailedPrecondition(f"The backup names a file outside itself: {name}.")
    if not _copy(source / name, destination):
        raise FailedPrecondition(f"The backup lacks {name}; restore another one.")
    if _digest(destination) != digest:
        raise FailedPrecondition(f"{source / name} is not the file that was saved; restore another backup.")


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
