"""The embedded buckets: gs:// names in the database, bytes in content-addressed files.

Every method that a door calls takes the caller's `project` number and answers a foreign bucket as one that does not
exist; None means a caller inside Sarto. All writes hold one lock, so conditions are atomic and collecting is safe.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, TypedDict, Unpack

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from sarto.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotEmpty
from sarto.names import parse_gs_uri
from sarto.storage import listing, rows
from sarto.storage.content import Content, ContentStore, Spool, disk
from sarto.storage.database import Database
from sarto.storage.objects import (
    Bucket,
    Conditions,
    Listing,
    ObjectFields,
    StoredObject,
    check_bucket_name,
    check_object_name,
)
from sarto.storage.sealer import Sealer
from sarto.storage.tables import bucket as bucket_table
from sarto.storage.tables import stored_object

__all__ = ["Bucket", "Buckets", "Conditions", "Content", "Listing", "ObjectFields", "Spool", "StoredObject"]

ALWAYS = Conditions()
PLAIN = ObjectFields()
STALE_SECONDS = 86_400.0


class How(TypedDict, total=False):
    """What may be said about an object that is put into a bucket."""

    content_type: str
    metadata: Mapping[str, str] | None
    if_generation_match: int | None
    project: str | None
    kms_key: str


class Buckets:
    """`root` is the home folder: content lies in `root/objects`, what is being received in `root/uploads`."""

    def __init__(self, database: Database, root: Path, sealer: Sealer) -> None:
        self.database, self.sealer = database, sealer
        self.content = ContentStore(root)

    # Buckets

    def create_bucket(
        self,
        project: str,
        name: str,
        location: str = "US",
        *,
        resource: Mapping[str, Any] | None = None,
        is_public: bool = False,
    ) -> Bucket:
        """Bucket names are one space over all projects. Raises AlreadyExists whoever owns it, InvalidArgument."""
        check_bucket_name(name)
        with self._writing() as connection:
            if rows.bucket_row(connection, name) is not None:
                raise AlreadyExists(
                    f'The bucket name "{name}" is taken: all projects share their names; choose another'
                )
            now = self.database.now(connection)
            made = Bucket(name, project, location.upper(), is_public, 1, dict(resource or {}), now, now)
            connection.execute(bucket_table.insert().values(rows.bucket_values(made)))
        return made

    def bucket(self, name: str, project: str | None = None) -> Bucket:
        with self.database.reading() as connection:
            return rows.visible(connection, name, project)

    def buckets(self, project: str, *, prefix: str = "", after: str = "", limit: int = 1000) -> tuple[Bucket, ...]:
        """A project's own buckets in the order of their names, beginning behind `after`."""
        query = sa.select(bucket_table).where(bucket_table.c.project == project, bucket_table.c.name > after)
        if prefix:
            query = query.where(bucket_table.c.name.startswith(prefix, autoescape=True))
        with self.database.reading() as connection:
            return tuple(
                rows.read_bucket(row) for row in connection.execute(query.order_by(bucket_table.c.name).limit(limit))
            )

    def update_bucket(
        self,
        name: str,
        change: Callable[[Mapping[str, Any]], Mapping[str, Any]],
        conditions: Conditions = ALWAYS,
        project: str | None = None,
    ) -> Bucket:
        """Replace the free part of a bucket's resource (labels and the like) by what `change` makes of it."""
        with self._writing() as connection:
            found = rows.visible(connection, name, project, writing=True)
            conditions.check_metageneration(found.metageneration)
            changed = replace(
                found,
                resource=dict(change(found.resource)),
                metageneration=found.metageneration + 1,
                update_time=self.database.now(connection),
            )
            values = rows.bucket_values(changed)
            connection.execute(bucket_table.update().where(bucket_table.c.name == name).values(values))
        return changed

    def delete_bucket(self, name: str, conditions: Conditions = ALWAYS, project: str | None = None) -> None:
        """Raises NotEmpty while it holds an object."""
        with self._writing() as connection:
            found = rows.visible(connection, name, project, writing=True)
            conditions.check_metageneration(found.metageneration)
            if connection.execute(
                sa.select(stored_object.c.name).where(stored_object.c.bucket == name).limit(1)
            ).first():
                raise NotEmpty(f'The bucket "{name}" you tried to delete is not empty; delete its objects first')
            rows.delete_bucket(connection, found)

    # Objects: writing

    def spool(self, bucket: str, kms_key: str = "") -> Spool:
        """A file to write an upload into; hand its `finish()` to `store` inside its `with` block. Its bytes come sealed
        under `kms_key`, or the bucket's own if that has one. Raises what the key service does, and NotFound."""
        kms_key = kms_key or self.bucket(bucket).default_key
        return self.content.spool(self.sealer.seal(kms_key) if kms_key else None)

    def store(
        self,
        bucket: str,
        name: str,
        content: Content,
        fields: ObjectFields = PLAIN,
        conditions: Conditions = ALWAYS,
        project: str | None = None,
        session: str = "",
    ) -> StoredObject:
        """Make received content the live version of an object, and with it close the upload session it came by.

        Raises ConditionNotMet, NotFound, InvalidArgument."""
        check_object_name(name)
        fields.check()
        with self._writing() as connection:
            rows.visible(connection, bucket, project, writing=True)
            found = rows.find(connection, bucket, name)
            conditions.check(found)
            self.content.place(content)
            stored = self.write(connection, bucket, name, content, fields)
            if session:
                rows.close_session(connection, session, stored, project)
        self._collect_unless(found, stored)
        return stored

    def put_file(self, bucket: str, name: str, source: Path, **how: Unpack[How]) -> StoredObject:
        """Copy a file into a bucket; with `if_generation_match=0` only if there is no such object yet."""
        with source.open("rb") as file:
            return self._put(bucket, name, file, **how)

    def put_bytes(self, bucket: str, name: str, data: bytes, **how: Unpack[How]) -> StoredObject:
        return self._put(bucket, name, BytesIO(data), **how)

    def _put(
        self,
        bucket: str,
        name: str,
        source: BinaryIO,
        content_type: str = PLAIN.content_type,
        metadata: Mapping[str, str] | None = None,
        if_generation_match: int | None = None,
        project: str | None = None,
        kms_key: str = "",
    ) -> StoredObject:
        fields = ObjectFields(content_type=content_type, metadata=dict(metadata or {}))
        with self.spool(bucket, kms_key) as spool:
            spool.read_from(source)
            return self.store(bucket, name, spool.finish(), fields, Conditions(generation=if_generation_match), project)

    def copy(
        self,
        source: StoredObject,
        bucket: str,
        name: str,
        fields: ObjectFields | None = None,
        conditions: Conditions = ALWAYS,
        project: str | None = None,
        *,
        is_move: bool = False,
    ) -> StoredObject:
        """Give the same bytes another name, or with `is_move` a new name; `fields` replace the source's."""
        check_object_name(name)
        (fields or PLAIN).check()
        with self._writing() as connection:
            rows.visible(connection, bucket, project, writing=True)
            rows.live(connection, source.bucket, source.name, source.generation)
            found = rows.find(connection, bucket, name)
            conditions.check(found)
            stored = self.write(connection, bucket, name, source, fields or source.fields)
            if is_move and (source.bucket, source.name) != (bucket, name):
                connection.execute(stored_object.delete().where(rows.key(source.bucket, source.name)))
        self._collect_unless(found, stored)
        return stored

    def compose(
        self,
        bucket: str,
        name: str,
        sources: Sequence[StoredObject],
        fields: ObjectFields = PLAIN,
        conditions: Conditions = ALWAYS,
        project: str | None = None,
    ) -> StoredObject:
        """The bytes of all sources, one after another, as one object, under the first key that one of them has."""
        kms_key = next((source.fields.kms_key for source in sources if source.fields.kms_key), "")
        with self.spool(bucket, kms_key) as spool:
            for source in sources:
                with self.open(source) as file:
                    spool.read_from(file)
            return self.store(bucket, name, spool.finish(), fields, conditions, project)

    def update(
        self,
        bucket: str,
        name: str,
        change: Callable[[ObjectFields], ObjectFields],
        generation: int | None = None,
        conditions: Conditions = ALWAYS,
        project: str | None = None,
    ) -> StoredObject:
        """Replace an object's fields by what `change` makes of them; its bytes and generation stay."""
        with self._writing() as connection:
            rows.visible(connection, bucket, project, writing=True)
            found = rows.live(connection, bucket, name, generation)
            conditions.check(found)
            fields = change(found.fields)
            fields.check()
            fields = replace(fields, kms_key=found.fields.kms_key, sealed_as=found.fields.sealed_as)
            changed = replace(
                found,
                fields=fields,
                content_type=fields.content_type,
                metageneration=found.metageneration + 1,
                update_time=self.database.now(connection),
            )
            values = rows.object_values(changed)
            connection.execute(stored_object.update().where(rows.key(bucket, name)).values(values))
        return changed

    def delete(
        self,
        bucket: str,
        name: str,
        generation: int | None = None,
        conditions: Conditions = ALWAYS,
        project: str | None = None,
    ) -> None:
        with self._writing() as connection:
            rows.visible(connection, bucket, project, writing=True)
            found = rows.live(connection, bucket, name, generation)
            conditions.check(found)
            connection.execute(stored_object.delete().where(rows.key(bucket, name)))
        self.collect(found.sha256)

    # Objects: reading

    def stat(self, bucket: str, name: str, generation: int | None = None, project: str | None = None) -> StoredObject:
        """Raises NotFound for no such bucket, object or generation."""
        with self.database.reading() as connection:
            rows.visible(connection, bucket, project)
            return rows.live(connection, bucket, name, generation)

    def resolve(self, uri: str, field: str = "uri", project: str | None = None) -> StoredObject:
        """The object a `gs://BUCKET/OBJECT` text names. Raises InvalidArgument on `field` for any other scheme."""
        scheme = uri.partition("://")[0]
        if "://" in uri and scheme != "gs":
            raise InvalidArgument.field(
                field, f'"{uri}": storage "{scheme}://" is not connected; use gs://BUCKET/OBJECT'
            )
        bucket, name = parse_gs_uri(uri, field)
        return self.stat(bucket, name, project=project)

    def list(
        self,
        bucket: str,
        prefix: str = "",
        delimiter: str = "",
        start: str = "",
        limit: int = 1000,
        *,
        end: str = "",
        page_token: str = "",
        include_trailing_delimiter: bool = False,
        project: str | None = None,
    ) -> Listing:
        """One page in the byte order of names, from `start` on and before `end`; `limit` counts prefixes too."""
        query = listing.Query(bucket, prefix, delimiter, start, end, limit, page_token, include_trailing_delimiter)
        with self.database.reading() as connection:
            rows.visible(connection, bucket, project)
            found, prefixes, token = listing.page(connection, query)
        return Listing(tuple(rows.read_object(row) for row in found), prefixes, token)

    def path(self, found: StoredObject) -> Path:
        """The read-only file with the object's bytes. It stays while this version lives; `link_into` keeps it.

        Raises FailedPrecondition for an object under a key, whose bytes are nowhere in the open."""
        if found.fields.kms_key:
            raise FailedPrecondition(f"{found.uri} is sealed under {found.fields.kms_key}, which this does not open.")
        return self.content.path(found.sha256)

    def open(self, found: StoredObject) -> BinaryIO:
        """The bytes, readable to the end even if the object is replaced meanwhile. The caller closes it.

        Raises FailedPrecondition when the object's key cannot be used."""
        path = self.content.path(found.sha256)
        try:
            return self.sealer.open(path, found.fields.sealed_as) if found.fields.kms_key else path.open("rb")
        except FileNotFoundError:
            raise rows.no_such(found.bucket, found.name) from None

    def link_into(self, found: StoredObject, target: Path) -> None:
        """Put the bytes at `target` for good: a hard link where the file system allows, else a copy."""
        try:
            os.link(self.path(found), target)
        except FileNotFoundError:
            raise rows.no_such(found.bucket, found.name) from None
        except OSError:  # another file system, or one without links
            with disk():
                shutil.copyfile(self.path(found), target)

    def sweep(self) -> int:
        """Remove content that no object refers to and spools a dead server left; gives how many files it removed."""
        removed = 0
        for folder in self.content.objects.iterdir():
            present = {file.name for file in folder.iterdir()}
            column = stored_object.c.sha256
            query = sa.select(column).where(column >= folder.name, column < f"{folder.name}g")
            with self.database.reading() as connection:
                referenced = set(connection.execute(query).scalars())
            removed += sum(self.collect(sha256) for sha256 in present - referenced)
        for file in self.content.uploads.glob("spool-*"):
            if time.time() - file.stat().st_mtime > STALE_SECONDS:
                file.unlink(missing_ok=True)
                removed += 1
        return removed

    @contextmanager
    def _writing(self) -> Iterator[Connection]:
        """A transaction that is the only one to write objects, on either database: it holds the generation's row."""
        with self.database.transaction() as connection:
            rows.lock(connection)
            yield connection

    def write(
        self, connection: Connection, bucket: str, name: str, content: Content | StoredObject, fields: ObjectFields
    ) -> StoredObject:
        now = self.database.now(connection)
        sealed = content if isinstance(content, Content) else content.fields
        fields = replace(fields, kms_key=sealed.kms_key, sealed_as=sealed.sealed_as)
        stored = StoredObject(
            bucket=bucket,
            name=name,
            generation=rows.next_generation(connection, now),
            metageneration=1,
            size=content.size,
            sha256=content.sha256,
            md5=content.md5,
            crc32c=content.crc32c,
            content_type=fields.content_type,
            fields=fields,
            create_time=now,
            update_time=now,
        )
        connection.execute(stored_object.delete().where(rows.key(bucket, name)))
        connection.execute(stored_object.insert().values(rows.object_values(stored)))
        return stored

    def _collect_unless(self, replaced: StoredObject | None, stored: StoredObject) -> None:
        if replaced is not None and replaced.sha256 != stored.sha256:
            self.collect(replaced.sha256)

    def collect(self, sha256: str) -> bool:
        """Remove content unless an object refers to it. The lock keeps new references out meanwhile."""
        with self._writing() as connection:
            query = sa.select(stored_object.c.name).where(stored_object.c.sha256 == sha256)
            if connection.execute(query.limit(1)).first():
                return False
            self.content.remove(sha256)
            return True
