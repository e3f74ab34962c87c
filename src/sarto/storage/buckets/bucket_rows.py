"""Rows of the bucket and object tables as Bucket and StoredObject, and the visibility of buckets.

Every function works inside a transaction of the caller.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import orjson
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from sarto.errors import NotFound, PermissionDenied
from sarto.storage.buckets.objects import (
    Bucket,
    NoSuchBucket,
    ObjectFields,
    StoredObject,
    check_object_name,
    content_name,
)
from sarto.storage.database.tables import binding, meta, stored_object, upload_session
from sarto.storage.database.tables import bucket as bucket_table

_CLOCK = "storage_generation"

# Built once: to build a statement costs more than to run it.
_BUCKET = sa.select(bucket_table).where(bucket_table.c.name == sa.bindparam("name"))
_OBJECT = sa.select(stored_object).where(
    stored_object.c.bucket == sa.bindparam("bucket"), stored_object.c.name == sa.bindparam("name")
)

_MAKE_CLOCK = sa.text("insert into meta (key, value) values (:key, '0') on conflict do nothing")
_LOCK_CLOCK = sa.select(meta.c.value).where(meta.c.key == _CLOCK).with_for_update()


def key(bucket: str, name: str) -> sa.ColumnElement[bool]:
    return sa.and_(stored_object.c.bucket == bucket, stored_object.c.name == name)


def bucket_row(connection: Connection, name: str) -> sa.Row[Any] | None:
    return connection.execute(_BUCKET, {"name": name}).first()


def visible(connection: Connection, name: str, project: str | None, *, writing: bool = False) -> Bucket:
    """The bucket if this project may see it. A bucket of another project is treated as missing."""
    row = bucket_row(connection, name) if name.isprintable() else None
    record = read_bucket(row) if row is not None else None
    if record is not None and project in (None, record.project):
        return record
    if record is None or not record.is_public:
        raise NoSuchBucket
    if writing:
        raise PermissionDenied(f'The bucket "{name}" is for reading only; write to a bucket of your project.')
    return record


def delete_bucket(connection: Connection, bucket: Bucket) -> None:
    """Delete a bucket with its policy, which a later bucket of this name must not inherit."""
    connection.execute(bucket_table.delete().where(bucket_table.c.name == bucket.name))
    policy = f"projects/{bucket.project}/buckets/{bucket.name}"
    connection.execute(binding.delete().where(binding.c.resource == policy))


def find(connection: Connection, bucket: str, name: str) -> StoredObject | None:
    row = connection.execute(_OBJECT, {"bucket": bucket, "name": name}).first()
    return None if row is None else read_object(row)


def live(connection: Connection, bucket: str, name: str, generation: int | None) -> StoredObject:
    stored = find(connection, bucket, check_object_name(name))
    if stored is None or generation not in (None, stored.generation):
        raise no_such(bucket, name, generation)
    return stored


def no_such(bucket: str, name: str, generation: int | None = None) -> NotFound:
    return NotFound(f"No such object: {bucket}/{name}" + (f"#{generation}" if generation is not None else ""))


def read_bucket(row: sa.Row[Any]) -> Bucket:
    fields = json.loads(row.resource)
    return Bucket(
        row.name,
        row.project,
        fields["location"],
        fields["is_public"],
        fields["metageneration"],
        fields["resource"],
        row.create_time,
        fields["update_time"],
    )


def bucket_values(bucket: Bucket) -> dict[str, Any]:
    names = ("location", "is_public", "metageneration", "resource", "update_time")
    resource = json.dumps({key: getattr(bucket, key) for key in names})
    return {"name": bucket.name, "project": bucket.project, "resource": resource, "create_time": bucket.create_time}


def read_object(row: sa.Row[Any]) -> StoredObject:
    columns = dict(row._mapping)
    fields = ObjectFields(content_type=row.content_type, **json.loads(columns.pop("resource")))
    return StoredObject(**columns, fields=fields)


def object_values(stored: StoredObject) -> dict[str, Any]:
    values = {**vars(stored)}
    fields = {key: value for key, value in vars(values.pop("fields")).items() if value and key != "content_type"}
    return {**values, "resource": json.dumps(fields)}


def contents(connection: Connection, table: sa.Table, *where: sa.ColumnElement[bool]) -> Iterator[str]:
    """Names of the content to which these rows of objects or holds refer; read lazily."""
    query = sa.select(table.c.sha256, table.c.resource).where(*where).execution_options(yield_per=100)
    with connection.execute(query) as rows:
        for row in rows:
            resource = orjson.loads(row.resource)
            yield content_name(row.sha256, resource.get("fields", resource).get("owner", ""))


def refers(connection: Connection, table: sa.Table, name: str) -> bool:
    """Whether a row of objects or holds refers to the content with this name."""
    sha256, _, owner = name.partition("-")
    where = [table.c.sha256 == sha256]
    if owner:  # leaves out most of the other projects' rows, of which there may be many
        where.append(table.c.resource.contains(f'"owner": "{owner}"', autoescape=True))
    return name in contents(connection, table, *where)


def lock(connection: Connection) -> None:
    """Make a transaction the only writer of objects, by a lock on the generation's row."""
    connection.execute(_MAKE_CLOCK, {"key": _CLOCK})
    connection.execute(_LOCK_CLOCK)


def next_generation(connection: Connection, now: float) -> int:
    """Microseconds since 1970, but always larger than any before, for any clock. Call under the lock."""
    last = int(connection.execute(sa.select(meta.c.value).where(meta.c.key == _CLOCK)).scalar_one())
    generation = max(int(now * 1e6), last + 1)
    connection.execute(meta.update().where(meta.c.key == _CLOCK).values(value=str(generation)))
    return generation


def close_session(connection: Connection, session: str, stored: StoredObject, project: str | None) -> None:
    ours = upload_session.c.id == session
    fields = connection.execute(sa.select(upload_session.c.resource).where(ours)).scalar() or "{}"
    member = {key: value for key, value in json.loads(fields).items() if key == "member"}
    resource = json.dumps({"project": project, "generation": stored.generation, **member})
    if connection.execute(upload_session.update().where(ours).values(kind="finished", resource=resource)).rowcount != 1:
        raise NotFound("The upload session was cancelled while it was completed.")
