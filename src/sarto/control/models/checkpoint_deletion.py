"""Deletion of checkpoints with a model or an unfinished job: rows, endpoints, adapters and bucket files.

Rows are deleted in the caller's transaction, and files after it: a crash in between leaves files without names, never
names without files.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from sarto.control.context import Control
from sarto.errors import NotFound
from sarto.names import parse_gs_uri
from sarto.storage.database.tables import checkpoint, endpoint


@dataclass(frozen=True)
class UnreferencedFiles:
    """Files that no row refers to any more."""

    project: str
    artifact_uris: frozenset[str]
    adapter_folders: frozenset[str]


def forget_checkpoints(connection: Connection, project: str, job: str) -> UnreferencedFiles:
    """Remove the rows of a job's checkpoints and endpoints; returns the files to remove afterwards."""
    ours = sa.and_(checkpoint.c.project == project, checkpoint.c.job == job)
    rows = connection.execute(sa.select(checkpoint.c.adapter_folder, checkpoint.c.artifact_uri).where(ours)).all()
    connection.execute(checkpoint.delete().where(ours))
    connection.execute(endpoint.delete().where(endpoint.c.project == project, endpoint.c.job == job))
    folders = {row.adapter_folder for row in rows}
    shared = sa.select(checkpoint.c.adapter_folder).where(checkpoint.c.adapter_folder.in_(folders))
    folders -= set(connection.execute(shared).scalars())
    return UnreferencedFiles(project, frozenset(row.artifact_uri for row in rows), frozenset(folders))


def remove(control: Control, leftovers: UnreferencedFiles) -> None:
    """Remove files in the service's bucket and on this machine. Files in a user's `outputUri` stay."""
    for uri in leftovers.artifact_uris:
        bucket, prefix = parse_gs_uri(uri, "artifact_uri")
        if bucket.startswith("sarto-") and bucket.endswith("-models"):
            try:
                while objects := control.buckets.list(bucket, prefix, project=leftovers.project).objects:
                    for one in objects:
                        control.buckets.delete(bucket, one.name, project=leftovers.project)
            except NotFound:
                pass  # someone else removed them
    for folder in leftovers.adapter_folders:
        shutil.rmtree(control.adapter_folder(folder), ignore_errors=True)
