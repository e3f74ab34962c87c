"""Uploads that come in pieces and survive a restart: resumable sessions, and multipart uploads part by part.

A session is a row; what has arrived is a file under `uploads/` named by the session's id, an unguessable number.
Knows no HTTP; used by the storage API.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from sarto.errors import InvalidArgument, NotFound, SartoError, Unavailable
from sarto.storage.buckets import STALE_SECONDS, Buckets
from sarto.storage.content import Checksums, Content, Spool, disk
from sarto.storage.objects import Conditions, ObjectFields, StoredObject, check_object_name
from sarto.storage.tables import upload_session

SESSION_SECONDS = 7 * 86_400.0
MAX_PARTS = 10_000


@dataclass(frozen=True)
class Upload:
    """An open session: where its bytes will go, for which project, and what must hold when they do."""

    id: str
    bucket: str
    name: str
    project: str
    fields: ObjectFields
    conditions: Conditions
    checksums: Checksums
    kms_key: str = ""
    """Of the bucket: then what has arrived waits in the private folder, and a restart ends the session."""


class Appender:
    """Writes behind what a resumable session has received, under the file's lock. `close` makes it durable."""

    def __init__(self, uploads: Uploads, upload: Upload, path: Path) -> None:
        self._uploads, self._upload, self._path = uploads, upload, path
        try:
            self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND)
        except FileNotFoundError:
            raise _ended() from None
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not os.path.samestat(path.stat(), os.fstat(self._descriptor)):
                raise FileNotFoundError
        except OSError as error:
            os.close(self._descriptor)
            if isinstance(error, FileNotFoundError):  # completed between the opening and the lock
                raise _ended() from None
            raise Unavailable("another request is writing to this upload session; ask for its state again") from None

    @property
    def size(self) -> int:
        return os.fstat(self._descriptor).st_size

    def write(self, block: bytes) -> None:
        view = memoryview(block)
        with disk():
            while view:
                view = view[os.write(self._descriptor, view) :]

    def finish(self) -> StoredObject:
        """Make the received bytes the object and close the session, in one transaction. A refusal ends it as well."""
        upload, buckets = self._upload, self._uploads.buckets
        try:
            with self._content() as content:
                upload.checksums.check(content)
                stored = buckets.store(
                    upload.bucket, upload.name, content, upload.fields, upload.conditions, upload.project,
                    session=upload.id,
                )  # fmt: skip
        except SartoError:
            self._uploads.cancel(upload)
            raise
        self._path.unlink(missing_ok=True)  # still there when equal bytes were in the store already
        return stored

    @contextmanager
    def _content(self) -> Iterator[Content]:
        """What was received, without a copy where the bucket has no key."""
        buckets, upload = self._uploads.buckets, self._upload
        if not upload.kms_key:
            yield buckets.content.adopt(self._path)
            return
        with buckets.spool(upload.bucket, upload.kms_key) as spool, self._path.open("rb") as file:
            spool.read_from(file)
            yield spool.finish()

    def close(self) -> None:
        try:
            with disk():
                os.fsync(self._descriptor)
        finally:
            os.close(self._descriptor)


class Uploads:
    """Sessions of the buckets beside it. Every method takes the caller's project; a foreign session does not exist."""

    def __init__(self, buckets: Buckets) -> None:
        self.buckets = buckets
        self._folder = buckets.content.uploads

    # Resumable sessions

    def begin(
        self,
        kind: str,
        bucket: str,
        name: str,
        project: str,
        fields: ObjectFields,
        conditions: Conditions = Conditions(),
        checksums: Checksums = Checksums(),
    ) -> Upload:
        """Open a session of kind "resumable" or "multipart". What can be refused is refused now."""
        check_object_name(name)
        fields.check()
        key = self.buckets.bucket(bucket, project).default_key
        upload = Upload(secrets.token_hex(24), bucket, name, project, fields, conditions, checksums, key)
        kept = {key: vars(getattr(upload, key)) for key in ("fields", "conditions", "checksums")}
        with disk():
            if kind == "multipart":
                self._parts(upload).mkdir(mode=0o700)
            else:
                self._file(upload).touch(mode=0o600)
        with self.buckets.database.transaction() as connection:
            row = {"id": upload.id, "kind": kind, "bucket": bucket, "name": name}
            row["resource"] = json.dumps({"project": project, "kms_key": key, **kept})
            connection.execute(upload_session.insert().values(**row, create_time=time.time()))
        return upload

    def find(self, kind: str, id: str, project: str) -> Upload | StoredObject:
        """The open session, or, once it is complete, the object it made. Raises NotFound."""
        with self.buckets.database.reading() as connection:
            row = connection.execute(sa.select(upload_session).where(upload_session.c.id == id)).first()
        kept = json.loads(row.resource) if row is not None else {}
        if row is None or kept["project"] != project or row.kind not in (kind, "finished"):
            raise _ended()
        if row.kind == "finished":
            return self.buckets.stat(row.bucket, row.name, kept["generation"], project)
        return Upload(
            row.id,
            row.bucket,
            row.name,
            project,
            ObjectFields(**kept["fields"]),
            Conditions(**kept["conditions"]),
            Checksums(**kept["checksums"]),
            kept.get("kms_key", ""),
        )

    def received(self, upload: Upload) -> int:
        """How many bytes of a resumable session are safely here."""
        try:
            return self._file(upload).stat().st_size
        except FileNotFoundError:
            return 0

    def appender(self, upload: Upload) -> Appender:
        """The session's only writer until it is closed. Raises Unavailable while there is another."""
        return Appender(self, upload, self._file(upload))

    def cancel(self, upload: Upload) -> None:
        with self.buckets.database.transaction() as connection:
            connection.execute(upload_session.delete().where(upload_session.c.id == upload.id))
        self._file(upload).unlink(missing_ok=True)
        shutil.rmtree(self._parts(upload), ignore_errors=True)

    # Multipart uploads

    def part_spool(self, upload: Upload) -> Spool:
        """A file to write a part into."""
        return Spool(self._place(upload))

    def put_part(self, upload: Upload, number: int, spooled: Path, md5: str) -> None:
        """Keep a finished spool as a part; `md5` in hex is its tag. A part of the same number is replaced."""
        if not 1 <= number <= MAX_PARTS:
            raise InvalidArgument(f"a part number is between 1 and {MAX_PARTS}, not {number}")
        target = self._parts(upload) / f"{number}-{md5}"
        try:
            spooled.rename(target)
        except FileNotFoundError:
            raise NotFound("The requested upload was not found.") from None
        for other in self._parts(upload).glob(f"{number}-*"):
            if other != target:
                other.unlink(missing_ok=True)

    def complete(
        self, upload: Upload, parts: Sequence[tuple[int, str]], conditions: Conditions | None = None
    ) -> StoredObject:
        """Join the named parts, given as (number, md5 in hex) in rising order, and close the session."""
        if not parts or [number for number, _ in parts] != sorted({number for number, _ in parts}):
            raise InvalidArgument("The list of parts was not in ascending order. Parts must be ordered by part number.")
        with self.buckets.spool(upload.bucket) as spool:
            for number, md5 in parts:
                try:
                    with (self._parts(upload) / f"{number:d}-{md5}").open("rb") as file:
                        spool.read_from(file)
                except FileNotFoundError:
                    raise InvalidArgument(f"part {number} was not uploaded, or its tag is another") from None
            content = spool.finish()
            upload.checksums.check(content)
            stored = self.buckets.store(
                upload.bucket,
                upload.name,
                content,
                upload.fields,
                conditions or upload.conditions,
                upload.project,
                session=upload.id,
            )
        shutil.rmtree(self._parts(upload), ignore_errors=True)
        return stored

    # Housekeeping

    def sweep(self, now: float) -> int:
        """Remove sessions a week old and files without a session; gives how many sessions went. `now` in seconds."""
        with self.buckets.database.transaction() as connection:
            old = upload_session.c.create_time < now - SESSION_SECONDS
            expired = connection.execute(upload_session.delete().where(old)).rowcount
            kept: set[Any] = set(connection.execute(sa.select(upload_session.c.id)).scalars())
        for entry in self._folder.iterdir():
            is_session = not entry.name.startswith("spool-") and entry.stem not in kept
            if is_session and now - entry.stat().st_mtime > STALE_SECONDS:
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        return expired

    def _file(self, upload: Upload) -> Path:
        return self._place(upload) / f"{upload.id}.bytes"

    def _parts(self, upload: Upload) -> Path:
        return self._place(upload) / f"{upload.id}.parts"

    def _place(self, upload: Upload) -> Path:
        if not upload.kms_key:
            return self._folder
        place = self.buckets.sealer.private.folder / "uploads"
        place.mkdir(mode=0o700, exist_ok=True)
        return place


def _ended() -> NotFound:
    return NotFound("no such upload session; it ended, expired or never was: begin a new one")
