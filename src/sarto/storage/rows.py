"""Rows of the bucket and object tables as Bucket and StoredObject, and who may see which bucket.

Every function works inside a transaction of the caller's; used by `buckets` and `uploads`.
"""

from __future__ import annotations

import json
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from sarto.errors import NotFound, PermissionDenied
from sarto.storage.objects import Bucket, NoSuchBucket, ObjectFields, StoredObject, check_object_name
from sarto.storage.tables import binding, meta, stored_object, upload_session
from sarto.storage.tables import bucket as bucket_table

_CLOCK = "storage_generation"

# Built once: to build a statement costs more than to run it.
_BUCKET = sa.select(bucket_table).where(bucket_table.c.name == sa.bindparam("name"))
_OBJECT = sa.select(stored_object).where(
    stored_object.c.bucket == sa.bindparam("bucket"), stored_object.c.name == sa.bindparam("name")
)


def key(bucket: str, name: str) -> sa.ColumnElement[bool]:
    return sa.and_(stored_object.c.bucket == bucket, stored_object.c.name == name)


def bucket_row(connection: Connection, name: str) -> sa.Row[Any] | None:
    return connection.execute(_BUCKET, {"name": name}).first()


def visible(connection: Connection, name: str, project: str | None, *, writing: bool = False) -> Bucket:
    """The bucket if this project may see it. A foreign one answers as one that does not exist."""
    row = bucket_row(connection, name) if name.isprintable() else None
    found = read_bucket(row) if row is not None else None
    if found is not None and project in (None, found.project):
        return found
    if found is None or not found.is_public:
        raise NoSuchBucket
    if writing:
        raise PermissionDenied(f'The bucket "{name}" is for reading only; write to a bucket of your project')
    return found


def delete_bucket(connection: Connection, found: Bucket) -> None:
    """With its policy, which a later bucket of this name must not inherit."""
    connection.execute(bucket_table.delete().where(bucket_table.c.name == found.name))
    policy = f"projects/{found.project}/buckets/{found.name}"
    connection.execute(binding.delete().where(binding.c.resource == policy))


def find(connection: Connection, bucket: str, name: str) -> StoredObject | None:
    row = connection.execute(_OBJECT, {"bucket": bucket, "name": name}).first()
    return None if row is None else read_object(row)


def live(connection: Connection, bucket: str, name: str, generation: int | None) -> StoredObject:
    found = find(connection, bucket, check_object_name(name))
    if found is None or generation not in (None, found.generation):
        raise no_such(bucket, name, generation)
    return found


def no_such(bucket: str, name: str, generation: int | None = None) -> NotFound:
    return NotFound(f"No such object: {bucket}/{name}" + (f"#{generation}" if generation is not None else ""))


def read_bucket(row: sa.Row[Any]) -> Bucket:
    kept = json.loads(row.resource)
    return Bucket(
        row.name,
        row.project,
        kept["location"],
        kept["is_public"],
        kept["metageneration"],
        kept["resource"],
        row.create_time,
        kept["update_time"],
    )


def bucket_values(bucket: Bucket) -> dict[str, Any]:
    kept = ("location", "is_public", "metageneration", "resource", "update_time")
    resource = json.dumps({key: getattr(bucket, key) for key in kept})
    return {"name": bucket.name, "project": bucket.project, "resource": resource, "create_time": bucket.create_time}


def read_object(row: sa.Row[Any]) -> StoredObject:
    columns = dict(row._mapping)
    fields = ObjectFields(content_type=row.content_type, **json.loads(columns.pop("resource")))
    return StoredObject(**columns, fields=fields)


def object_values(stored: StoredObject) -> dict[str, Any]:
    values = {**vars(stored)}
    fields = {key: value for key, value in vars(values.pop("fields")).items() if value and key != "content_type"}
    return {**values, "resource": json.dumps(fields)}


def lock(connection: Connection) -> None:
    """Make a transaction the only one to write objects: it holds the generation's row."""
    begin = sa.text("insert into meta (key, value) values (:key, '0') on conflict do nothing")
    connection.execute(begin, {"key": _CLOCK})
    connection.execute(sa.select(meta.c.value).where(meta.c.key == _CLOCK).with_for_update())


def next_generation(connection: Connection, now: float) -> int:
    """Microseconds since 1970, yet larger than any before, whatever the clock does. Call under the lock."""
    last = int(connection.execute(sa.select(meta.c.value).where(meta.c.key == _CLOCK)).scalar_one())
    generation = max(int(now * 1e6), last + 1)
    connection.execute(meta.update().where(meta.c.key == _CLOCK).values(value=str(generation)))
    return generation


def close_session(connection: Connection, session: str, stored: StoredObject, project: str | None) -> None:
    resource = json.dumps({"project": project, "generation": stored.generation})
    ended = upload_session.update().where(upload_session.c.id == session).values(kind="finished", resource=resource)
    if connection.execute(ended).rowcount != 1:
        raise NotFound("the upload session was cancelled while it was completed")
