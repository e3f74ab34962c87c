"""The embedded buckets: gs:// names in the database, bytes in content-addressed files.

Every method for handlers takes the caller's `project` number. A bucket of another project is treated as missing; None
means a caller inside Sarto. All writes hold one lock, so conditions are atomic and removal is safe.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, TypedDict, Unpack

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from sarto.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotEmpty
from sarto.names import parse_gs_uri
from sarto.storage.buckets import bucket_rows, holds, listing
from sarto.storage.buckets.blobs import Content, ContentStore, Spool
from sarto.storage.buckets.objects import (
    Bucket,
    Conditions,
    Listing,
    ObjectFields,
    StoredObject,
    check_bucket_name,
    check_object_name,
    content_name,
)
from sarto.storage.database.database import Database, report
from sarto.storage.database.tables import bucket as bucket_table
from sarto.storage.database.tables import held_object, stored_object
from sarto.storage.encryption.sealer import Sealer
from sarto.system.files import disk

__all__ = ["Bucket", "Buckets", "Conditions", "Content", "Listing", "ObjectFields", "Spool", "StoredObject"]

ALWAYS = Conditions()
PLAIN = ObjectFields()
STALE_SECONDS = 86_400.0
CREATE, UPDATE, DELETE = "storage.objects.create", "storage.objects.update", "storage.objects.delete"
_REFERRING = (stored_object, held_object)
"""Tables whose rows keep content alive."""


class PutOptions(TypedDict, total=False):
    """Optional properties of an object that is put into a bucket."""

    content_type: str
    metadata: Mapping[str, str] | None
    if_generation_match: int | None
    project: str | None
    kms_key: str
    may_replace: bool


class Buckets:
    """`root` is the home folder: content is in `root/objects`, unfinished uploads in `root/uploads`."""

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
        """Create a bucket. All projects share the names of buckets. Raises AlreadyExists for a name of any project,
        InvalidArgument."""
        check_bucket_name(name)
        with self._writing() as connection:
            if bucket_rows.bucket_row(connection, name) is not None:
                raise AlreadyExists(
                    f'The bucket name "{name}" is taken: all projects share their names; choose another.'
                )
            now = self.database.now(connection)
            bucket = Bucket(name, project, location.upper(), is_public, 1, dict(resource or {}), now, now)
            connection.execute(bucket_table.insert().values(bucket_rows.bucket_values(bucket)))
            report(connection, "storage.buckets.create", project, f"projects/_/buckets/{name}")
        return bucket

    def bucket(self, name: str, project: str | None = None) -> Bucket:
        with self.database.reading() as connection:
            return bucket_rows.visible(connection, name, project)

    def buckets(self, project: str, *, prefix: str = "", after: str = "", limit: int = 1000) -> tuple[Bucket, ...]:
        """A project's own buckets in the order of their names, starting after `after`."""
        query = sa.select(bucket_table).where(bucket_table.c.project == project, bucket_table.c.name > after)
        if prefix:
            query = query.where(bucket_table.c.name.startswith(prefix, autoescape=True))
        with self.database.reading() as connection:
            return tuple(
                bucket_rows.read_bucket(row)
                for row in connection.execute(query.order_by(bucket_table.c.name).limit(limit))
            )

    def update_bucket(
        self,
        name: str,
        change: Callable[[Mapping[str, Any]], Mapping[str, Any]],
        conditions: Conditions = ALWAYS,
        project: str | None = None,
    ) -> Bucket:
        """Replace the mutable part of a bucket's resource (labels and the like) by the result of `change`."""
        with self._writing() as connection:
            bucket = bucket_rows.visible(connection, name, project, writing=True)
            conditions.check_metageneration(bucket.metageneration)
            changed = replace(
                bucket,
                resource=dict(change(bucket.resource)),
                metageneration=bucket.metageneration + 1,
                update_time=self.database.now(connection),
            )
            values = bucket_rows.bucket_values(changed)
            connection.execute(bucket_table.update().where(bucket_table.c.name == name).values(values))
        return changed

    def delete_bucket(self, name: str, conditions: Conditions = ALWAYS, project: str | None = None) -> None:
        """Raises NotEmpty while it holds an object."""
        with self._writing() as connection:
            bucket = bucket_rows.visible(connection, name, project, writing=True)
            conditions.check_metageneration(bucket.metageneration)
            if connection.execute(
                sa.select(stored_object.c.name).where(stored_object.c.bucket == name).limit(1)
            ).first():
                raise NotEmpty(f'The bucket "{name}" you tried to delete is not empty; delete its objects first.')
            bucket_rows.delete_bucket(connection, bucket)
        self.database.rights_changes += 1

    # Objects: writing

    def spool(self, bucket: str, kms_key: str = "") -> Spool:
        """A file for an upload; pass its `finish()` to `store` inside its `with` block. Its bytes are encrypted under
        `kms_key`, or the bucket's default key. Raises the errors of the key service, and NotFound."""
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
        """Make received content the live version of an object, and close its upload session.

        Raises ConditionNotMet, NotFound, InvalidArgument."""
        check_object_name(name)
        fields.check()
        with self._writing() as connection:
            owner = bucket_rows.visible(connection, bucket, project, writing=True).project
            previous = bucket_rows.find(connection, bucket, name)
            conditions.check(previous)
            self.content.place(content, content_name(content.sha256, owner))
            stored = self.write(connection, bucket, name, content, replace(fields, owner=owner))
            if session:
                bucket_rows.close_session(connection, session, stored, project)
        self._collect_unless(previous, stored)
        return stored

    def put_file(self, bucket: str, name: str, source: Path, **how: Unpack[PutOptions]) -> StoredObject:
        """Copy a file into a bucket; with `if_generation_match=0` only if there is no such object yet."""
        with source.open("rb") as file:
            return self._put(bucket, name, file, **how)

    def put_bytes(self, bucket: str, name: str, data: bytes, **how: Unpack[PutOptions]) -> StoredObject:
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
        may_replace: bool = True,
    ) -> StoredObject:
        conditions = Conditions(generation=if_generation_match, may_replace=may_replace)
        fields = ObjectFields(content_type=content_type, metadata=dict(metadata or {}))
        with self.spool(bucket, kms_key) as spool:
            spool.read_from(source)
            return self.store(bucket, name, spool.finish(), fields, conditions, project)

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
        """Link the same bytes to another name, or with `is_move` rename them; `fields` replace the source's."""
        check_object_name(name)
        (fields or PLAIN).check()
        with self._writing() as connection:
            owner = bucket_rows.visible(connection, bucket, project, writing=True).project
            bucket_rows.live(connection, source.bucket, source.name, source.generation)
            previous = bucket_rows.find(connection, bucket, name)
            conditions.check(previous)
            self.content.share(source.content, content_name(source.sha256, owner))
            stored = self.write(connection, bucket, name, source, replace(fields or source.fields, owner=owner))
            if is_move and (source.bucket, source.name) != (bucket, name):
                connection.execute(stored_object.delete().where(bucket_rows.key(source.bucket, source.name)))
                report(connection, DELETE, owner, source.path)
        self._collect_unless(previous, stored)
        self._collect_unless(source if is_move else None, stored)
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
        """Concatenate all sources into one object, encrypted under the first key that one of them has."""
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
        """Replace an object's fields by the result of `change`; its bytes and generation stay."""
        with self._writing() as connection:
            owner = bucket_rows.visible(connection, bucket, project, writing=True).project
            stored = bucket_rows.live(connection, bucket, name, generation)
            conditions.check(stored)
            fields = change(stored.fields)
            fields.check()
            ours = stored.fields
            fields = replace(fields, kms_key=ours.kms_key, sealed_as=ours.sealed_as, owner=ours.owner)
            changed = replace(
                stored,
                fields=fields,
                content_type=fields.content_type,
                metageneration=stored.metageneration + 1,
                update_time=self.database.now(connection),
            )
            values = bucket_rows.object_values(changed)
            connection.execute(stored_object.update().where(bucket_rows.key(bucket, name)).values(values))
            report(connection, UPDATE, owner, changed.path)
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
            owner = bucket_rows.visible(connection, bucket, project, writing=True).project
            stored = bucket_rows.live(connection, bucket, name, generation)
            conditions.check(stored)
            connection.execute(stored_object.delete().where(bucket_rows.key(bucket, name)))
            report(connection, DELETE, owner, stored.path)
        self.collect(stored.content)

    # Objects: reading

    def stat(self, bucket: str, name: str, generation: int | None = None, project: str | None = None) -> StoredObject:
        """Raises NotFound for no such bucket, object or generation."""
        with self.database.reading() as connection:
            bucket_rows.visible(connection, bucket, project)
            return bucket_rows.live(connection, bucket, name, generation)

    def resolve(self, uri: str, field: str = "uri", project: str | None = None) -> StoredObject:
        """The object of a `gs://BUCKET/OBJECT` text. Raises InvalidArgument on `field` for any other scheme."""
        scheme = uri.partition("://")[0]
        if "://" in uri and scheme != "gs":
            raise InvalidArgument.field(
                field, f'"{uri}": storage "{scheme}://" is not supported; use gs://BUCKET/OBJECT.'
            )
        bucket, name = parse_gs_uri(uri, field)
        return self.stat(bucket, name, project=project)

    def hold(self, connection: Connection, project: str, holder: str, objects: Iterable[StoredObject]) -> None:
        """Keep these versions for a job or an operation, in the transaction that creates it. Raises Unavailable if one
        was replaced after it was read."""
        holds.add(connection, self.content, project, holder, objects)

    def held(self, project: str, holder: str, uri: str, field: str = "uri") -> StoredObject:
        """The version that a job or an operation holds. Work from before holds existed now holds the present version;
        then raises as `resolve` does."""
        with self.database.reading() as connection:
            stored = holds.get(connection, project, holder, uri)
        if stored is None:
            stored = self.resolve(uri, field, project)
            with self.database.transaction() as connection:
                self.hold(connection, project, holder, [stored])
        return stored

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
            bucket_rows.visible(connection, bucket, project)
            objects, prefixes, token = listing.page(connection, query)
        return Listing(tuple(bucket_rows.read_object(row) for row in objects), prefixes, token)

    def by_name(
        self, bucket: str, prefix: str, after: str = "", limit: int = 1000, *, ascending: bool = True
    ) -> tuple[StoredObject, ...]:
        """Objects whose names have the prefix, in the order of names or in its reverse; none if there is no bucket."""
        with self.database.reading() as connection:
            rows = listing.by_name(connection, bucket, prefix, after, limit, ascending=ascending)
        return tuple(bucket_rows.read_object(row) for row in rows)

    def path(self, stored: StoredObject) -> Path:
        """The read-only file with the object's bytes. It stays while this version is live; `link_into` keeps it.

        Raises FailedPrecondition for an object under a key, which has no plain file."""
        if stored.fields.kms_key:
            raise FailedPrecondition(f"{stored.uri} is encrypted under {stored.fields.kms_key} and has no plain file.")
        return self.content.path(stored.content)

    def open(self, stored: StoredObject) -> BinaryIO:
        """A stream of the bytes, readable to the end even if the object is replaced meanwhile. The caller closes it.

        Raises FailedPrecondition when the object's key cannot be used."""
        path = self.content.path(stored.content)
        try:
            return self.sealer.open(path, stored.fields.sealed_as) if stored.fields.kms_key else path.open("rb")
        except FileNotFoundError:
            raise bucket_rows.no_such(stored.bucket, stored.name) from None

    def link_into(self, stored: StoredObject, target: Path) -> None:
        """Put the bytes at `target` permanently: a hard link if the file system allows, else a copy."""
        try:
            os.link(self.path(stored), target)
        except FileNotFoundError:
            raise bucket_rows.no_such(stored.bucket, stored.name) from None
        except OSError:  # another file system, or one without links
            with disk():
                shutil.copyfile(self.path(stored), target)

    def sweep(self) -> int:
        """Remove content without references and spools of a dead server; returns the number of removed files."""
        removed = 0
        for folder in self.content.objects.iterdir():
            present = {file.name for file in folder.iterdir()}
            with self.database.reading() as connection:
                referenced = {
                    name
                    for table in _REFERRING
                    for name in bucket_rows.contents(
                        connection, table, table.c.sha256 >= folder.name, table.c.sha256 < f"{folder.name}g"
                    )
                }
            removed += sum(self.collect(name) for name in present - referenced)
        for file in self.content.uploads.glob("spool-*"):
            if time.time() - file.stat().st_mtime > STALE_SECONDS:
                file.unlink(missing_ok=True)
                removed += 1
        return removed

    @contextmanager
    def _writing(self) -> Iterator[Connection]:
        """A transaction that is the only writer of objects, on either database, by a lock on the generation's row."""
        with self.database.transaction() as connection:
            bucket_rows.lock(connection)
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
            generation=bucket_rows.next_generation(connection, now),
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
        replaced = connection.execute(stored_object.delete().where(bucket_rows.key(bucket, name)))
        connection.execute(stored_object.insert().values(bucket_rows.object_values(stored)))
        if replaced.rowcount:  # as at Google, whose record has both of an overwrite
            report(connection, DELETE, fields.owner, stored.path)
        report(connection, CREATE, fields.owner, stored.path)
        return stored

    def _collect_unless(self, replaced: StoredObject | None, stored: StoredObject) -> None:
        if replaced is not None and replaced.content != stored.content:
            self.collect(replaced.content)

    def collect(self, name: str) -> bool:
        """Remove content unless an object or a hold refers to it. The lock excludes new references meanwhile."""
        with self._writing() as connection:
            if any(bucket_rows.refers(connection, table, name) for table in _REFERRING):
                return False
            self.content.remove(name)
            return True
