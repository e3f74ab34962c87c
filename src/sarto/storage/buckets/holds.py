"""Holds: versions of objects whose bytes stay for running work, even when the object is replaced or deleted.

A holder is the id of a job or an operation. Holds are not released by their holder: `retention` removes those of ended
work. Every function works inside a transaction of the caller.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from sarto.errors import Unavailable
from sarto.storage.buckets import bucket_rows
from sarto.storage.buckets.blobs import ContentStore
from sarto.storage.buckets.objects import ObjectFields, StoredObject
from sarto.storage.database.tables import held_object

# Built once: to build a statement costs more than to run it.
_HELD = sa.select(held_object.c.resource).where(
    held_object.c.project == sa.bindparam("project"),
    held_object.c.holder == sa.bindparam("holder"),
    held_object.c.uri == sa.bindparam("uri"),
)
_INSERT = held_object.insert()


def add(
    connection: Connection, content: ContentStore, project: str, holder: str, objects: Iterable[StoredObject]
) -> None:
    """Keep exactly these versions; existing holds stay. Raises Unavailable if one was replaced after it was read, and
    its bytes are deleted."""
    by_uri = {stored.uri: stored for stored in objects}
    if not by_uri:
        return
    bucket_rows.lock(connection)  # nothing is collected until this transaction ends
    for uri, stored in by_uri.items():
        if get(connection, project, holder, uri) is not None:
            continue
        if not content.path(stored.content).exists():
            raise Unavailable(f"{uri} was replaced while this request was checked; send the request again.")
        resource = json.dumps(vars(stored) | {"fields": vars(stored.fields)})
        values = {"project": project, "holder": holder, "uri": uri, "sha256": stored.sha256, "resource": resource}
        connection.execute(_INSERT, values)


def get(connection: Connection, project: str, holder: str, uri: str) -> StoredObject | None:
    held = connection.execute(_HELD, {"project": project, "holder": holder, "uri": uri}).scalar()
    if held is None:
        return None
    values = json.loads(held)
    return StoredObject(**values | {"fields": ObjectFields(**values["fields"])})
