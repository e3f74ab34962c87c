"""A copy of a whole home while its service runs, and a home made from such a copy.

The database is copied by SQLite's own online backup; bytes of buckets and adapters never change once they have a name,
so it matters only that all that the copied database refers to is there in the end. Base weights are no part of a home.
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

MANIFEST = "backup.json"
DATABASE = "sarto.db"
NOT_COPIED = frozenset(
    {"cache", "private", "sockets", "uploads", "logs", "address", "grpc_address", "serve.lock", MANIFEST}
)
MOST_ROUNDS = 20
FORM = 1
REFERRED = "select distinct sha256 from object"


def save(home: Path, target: Path) -> dict[str, object]:
    """Copy `home` to the new folder `target`; gives the manifest. The folder appears when it is complete.

    Raises AlreadyExists, NotFound, ResourceExhausted, and FailedPrecondition when objects never stop changing."""
    if not (home / DATABASE).exists():
        raise NotFound(f"{home} holds no {DATABASE}: it is not the home of a service on SQLite.")
    if target.exists():
        raise AlreadyExists(f"{target} exists; name a folder that does not.")
    if target.resolve().is_relative_to(home.resolve()):
        raise InvalidArgument(f"{target} lies inside the home; name a place outside, best on another disk.")
    part = target.with_name(f".{target.name}.part-{os.getpid()}")
    try:
        part.mkdir(mode=0o700, parents=True)
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
        part.rename(target)
    except OSError as error:
        raise ResourceExhausted(f"The backup to {target} could not be written: {error.strerror}.") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return manifest


def restore(source: Path, home: Path) -> dict[str, object]:
    """Make the new folder `home` from a backup, each file checked on the way; gives the manifest.

    Raises NotFound, AlreadyExists, and FailedPrecondition naming a file that is missing or not what was saved."""
    try:
        manifest: dict[str, object] = json.loads((source / MANIFEST).read_text())
    except (OSError, ValueError):
        raise NotFound(f"{source} is not a backup: it has no {MANIFEST} that can be read.") from None
    if manifest.get("form") != FORM:
        raise FailedPrecondition(f"{source} was made by a newer version of Sarto; restore it with that one.")
    if home.exists() and any(home.iterdir()):
        raise AlreadyExists(f"The home {home} is not empty; name a folder that is, or does not exist.")
    part = home.with_name(f".{home.name}.part-{os.getpid()}")
    try:
        files = manifest["files"]
        assert isinstance(files, dict)
        for name, digest in files.items():
            _restore_file(source, part, name, digest)
        _move_paths(part / DATABASE, Path(str(manifest["home"])), home)
        os.sync()
        if home.exists():
            home.rmdir()
        part.rename(home)
    except OSError as error:
        raise ResourceExhausted(f"The home {home} could not be written: {error.strerror}.") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return manifest


def _copy_home(home: Path, target: Path) -> None:
    """Everything but the database. What vanishes meanwhile was not needed; half-written files have names with a dot."""
    left_out = (".", DATABASE)
    found = (path for path in home.iterdir() if path.name not in NOT_COPIED and not path.name.startswith(left_out))
    _copy_all(sorted(found), target)


def _copy_folder(source: Path, target: Path) -> None:
    target.mkdir(mode=0o700, exist_ok=True)
    try:  # a resume point before the history behind it, which only grows
        found = sorted(source.iterdir(), key=lambda path: (path.suffix != ".safetensors", path.name))
    except FileNotFoundError:
        return
    _copy_all((path for path in found if not path.name.startswith(".") and not path.is_symlink()), target)


def _copy_all(found: Iterable[Path], target: Path) -> None:
    for path in found:
        if path.is_dir():
            _copy_folder(path, target / path.name)
        else:
            _copy(path, target / path.name)


def _copy_database(home: Path, target: Path) -> None:
    """A consistent database and all that it refers to: again, as long as something was removed in between."""
    for _ in range(MOST_ROUNDS):
        (target / DATABASE).unlink(missing_ok=True)
        with closing(sqlite3.connect(home / DATABASE)) as live, closing(sqlite3.connect(target / DATABASE)) as copy:
            live.backup(copy)
            copy.execute("pragma journal_mode=delete")
            wanted = [home / "objects" / sha[:2] / sha for (sha,) in copy.execute(REFERRED)]
            adapters = copy.execute("select distinct adapter_digest from checkpoint").fetchall()
        for (digest,) in adapters:
            if not (target / "adapters" / digest).is_dir() and (home / "adapters" / digest).is_dir():
                _copy_folder(home / "adapters" / digest, target / "adapters" / digest)
        missing = [path for path in wanted if not (target / path.relative_to(home)).exists()]
        if all(_copy(path, target / path.relative_to(home)) for path in missing):
            return
    raise FailedPrecondition("Objects were removed faster than they could be copied; try again when less is going on.")


def _copy(source: Path, target: Path) -> bool:
    """False when it is not there any more."""
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        shutil.copy2(source, target)
    except FileNotFoundError:
        return False
    return True


def _restore_file(source: Path, target: Path, name: str, digest: str) -> None:
    place = (target / name).resolve()
    if not place.is_relative_to(target.resolve()):
        raise FailedPrecondition(f"The backup names a file outside itself: {name}.")
    if not _copy(source / name, place):
        raise FailedPrecondition(f"The backup lacks {name}; restore another one.")
    if _digest(place) != digest:
        raise FailedPrecondition(f"{source / name} is not the file that was saved; restore another backup.")


def _move_paths(database: Path, old: Path, new: Path) -> None:
    """The few paths that rows hold, when the home lies elsewhere now."""
    with closing(sqlite3.connect(database)) as connection, connection:
        for table, column in (("checkpoint", "adapter_folder"), ("tuning_job", "run")):
            connection.execute(f"update {table} set {column} = replace({column}, ?, ?)", (f"{old}/", f"{new}/"))


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
