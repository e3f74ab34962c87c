"""Uploads in pieces that survive a restart: resumable sessions, and multipart uploads part by part.

A session is a row. Its received bytes are a file under `uploads/`, named by the session's unguessable id.
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
from sarto.storage.buckets.blobs import Checksums, Content, Spool
from sarto.storage.buckets.objects import Conditions, ObjectFields, StoredObject, check_object_name
from sarto.storage.buckets.store import STALE_SECONDS, Buckets
from sarto.storage.database.tables import upload_session
from sarto.system.files import disk

SESSION_SECONDS = 7 * 86_400.0
MAX_PARTS = 10_000


@dataclass(frozen=True)
class Upload:
    """An open session: the target of its bytes, its project and caller, and the conditions of the write."""

    id: str
    bucket: str
    name: str
    project: str
    fields: ObjectFields
    conditions: Conditions
    checksums: Checksums
    kms_key: str = ""
    """The bucket's key. With a key the received bytes are in the private folder, and a restart ends the session."""


class Appender:
    """Appends to the received bytes of a resumable session, under the file's lock. `close` makes them durable."""

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
            raise Unavailable("Another request is writing to this upload session; request its state again.") from None

    @property
    def size(self) -> int:
        return os.fstat(self._descriptor).st_size

    def write(self, block: bytes) -> None:
        view = memoryview(block)
        with disk():
            while view:
                view = view[os.write(self._descriptor, view) :]

    def finish(self) -> StoredObject:
        """Make the received bytes the object and close the session, in one transaction. A refusal also ends it."""
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
        """The received bytes, without a copy if the bucket has no key."""
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
    """Sessions of the buckets. Every method takes the caller's project; a session of another project is treated as
    missing."""

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
        member: str = "",
    ) -> Upload:
        """Open a session of kind "resumable" or "multipart". Refuses at once everything that can be checked now."""
        check_object_name(name)
        fields.check()
        key = self.buckets.bucket(bucket, project).default_key
        upload = Upload(secrets.token_hex(24), bucket, name, project, fields, conditions, checksums, key)
        resource = {key: vars(getattr(upload, key)) for key in ("fields", "conditions", "checksums")}
        with disk():
            if kind == "multipart":
                self._parts(upload).mkdir(mode=0o700)
            else:
                self._file(upload).touch(mode=0o600)
        with self.buckets.database.transaction() as connection:
            row = {"id": upload.id, "kind": kind, "bucket": bucket, "name": name}
            row["resource"] = json.dumps({"project": project, "member": member, "kms_key": key, **resource})
            connection.execute(upload_session.insert().values(**row, create_time=time.time()))
        return upload

    def find(self, kind: str, id: str, project: str, bucket: str, member: str = "") -> Upload | StoredObject:
        """The open session that this caller began in the bucket or, once it is complete, its object. Raises NotFound.
        Sessions from before callers were recorded have no caller to check."""
        with self.buckets.database.reading() as connection:
            row = connection.execute(sa.select(upload_session).where(upload_session.c.id == id)).first()
        fields = json.loads(row.resource) if row is not None else {}
        if row is None or row.bucket != bucket or fields["project"] != project or row.kind not in (kind, "finished"):
            raise _ended()
        if fields.get("member", member) != member:
            raise _ended()
        if row.kind == "finished":
            return self.buckets.stat(row.bucket, row.name, fields["generation"], project)
        return Upload(
            row.id,
            row.bucket,
            row.name,
            project,
            ObjectFields(**fields["fields"]),
            Conditions(**fields["conditions"]),
            Checksums(**fields["checksums"]),
            fields.get("kms_key", ""),
        )

    def received(self, upload: Upload) -> int:
        """Number of bytes of a resumable session that are durable."""
        try:
            return self._file(upload).stat().st_size
        except FileNotFoundError:
            return 0

    def appender(self, upload: Upload) -> Appender:
        """The session's only writer until it is closed. Raises Unavailable while another one is open."""
        return Appender(self, upload, self._file(upload))

    def cancel(self, upload: Upload) -> None:
        with self.buckets.database.transaction() as connection:
            connection.execute(upload_session.delete().where(upload_session.c.id == upload.id))
        self._file(upload).unlink(missing_ok=True)
        shutil.rmtree(self._parts(upload), ignore_errors=True)

    # Multipart uploads

    def part_spool(self, upload: Upload) -> Spool:
        """A file to write a part into."""
        return Spool(self._folder_of(upload))

    def put_part(self, upload: Upload, number: int, spooled: Path, md5: str) -> None:
        """Store a finished spool as a part; `md5` in hex is its tag. A part with the same number is replaced."""
        if not 1 <= number <= MAX_PARTS:
            raise InvalidArgument(f"A part number is between 1 and {MAX_PARTS}, not {number}.")
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
        try:
            return self.join(upload, [f"{number:d}-{md5}" for number, md5 in parts], conditions)
        except FileNotFoundError as error:
            number = Path(error.filename).name.partition("-")[0]
            raise InvalidArgument(f"Part {number} was not uploaded, or its tag differs.") from None

    def keep_part(self, upload: Upload, name: str, spooled: Path) -> None:
        """Store a finished spool as a part with a new name, for `join`. Raises NotFound, InvalidArgument."""
        folder = self._parts(upload)
        try:
            if sum(1 for _ in folder.iterdir()) >= MAX_PARTS:
                raise InvalidArgument(f"An upload has at most {MAX_PARTS:,} parts.")
            spooled.rename(folder / name)
        except FileNotFoundError:
            raise _ended() from None

    def size_of(self, upload: Upload, names: Sequence[str]) -> int | None:
        """The bytes of these parts together; None if one is missing."""
        try:
            return sum((self._parts(upload) / name).stat().st_size for name in names)
        except FileNotFoundError:
            return None

    def join(self, upload: Upload, names: Sequence[str], conditions: Conditions | None = None) -> StoredObject:
        """Join the parts in this order and close the session. Raises FileNotFoundError for a part that is missing."""
        with self.buckets.spool(upload.bucket) as spool:
            for name in names:
                with (self._parts(upload) / name).open("rb") as file:
                    spool.read_from(file)
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
        """Remove sessions a week old and files without a session; returns the number of removed sessions. `now` in
        seconds."""
        with self.buckets.database.transaction() as connection:
            old = upload_session.c.create_time < now - SESSION_SECONDS
            expired = connection.execute(upload_session.delete().where(old)).rowcount
            session_ids: set[Any] = set(connection.execute(sa.select(upload_session.c.id)).scalars())
        for entry in self._folder.iterdir():
            is_session = not entry.name.startswith("spool-") and entry.stem not in session_ids
            if is_session and now - entry.stat().st_mtime > STALE_SECONDS:
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        return expired

    def _file(self, upload: Upload) -> Path:
        return self._folder_of(upload) / f"{upload.id}.bytes"

    def _parts(self, upload: Upload) -> Path:
        return self._folder_of(upload) / f"{upload.id}.parts"

    def _folder_of(self, upload: Upload) -> Path:
        if not upload.kms_key:
            return self._folder
        folder = self.buckets.sealer.private.folder / "uploads"
        folder.mkdir(mode=0o700, exist_ok=True)
        return folder


def _ended() -> NotFound:
    return NotFound("No such upload session; it ended, expired or never existed; start a new one.")
