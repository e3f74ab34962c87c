"""Writes several objects in one transaction of the caller: all of them with the caller's rows, or none.

`receive` stores the bytes without a name; `StagedFiles.write` names them inside the transaction. `Buckets.sweep`
removes the bytes of a caller that died in between.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from sqlalchemy.engine import Connection

from sarto.storage.buckets import bucket_rows
from sarto.storage.buckets.blobs import Content
from sarto.storage.buckets.objects import check_object_name, content_name
from sarto.storage.buckets.store import PLAIN, Buckets, Conditions

CONTENT_TYPES = {".json": "application/json", ".jsonl": "application/jsonl", ".html": "text/html; charset=utf-8"}
ContentType = Callable[[str], str]
"""The type of an object by its name."""


def plain(_name: str) -> str:
    return PLAIN.content_type


def by_suffix(name: str) -> str:
    return CONTENT_TYPES.get(PurePosixPath(name).suffix, "application/octet-stream")


@dataclass(frozen=True)
class StagedFiles:
    """Copies of files that are on the disk and have no name in their bucket yet."""

    buckets: Buckets
    bucket: str
    contents: Mapping[str, Content]
    """By the names of the objects to come."""
    content_type: ContentType

    def write(self, connection: Connection, project: str, *, may_replace: bool) -> list[str]:
        """Make them the live objects, all or none; returns the replaced content, for `Buckets.collect` after the
        commit. Raises PermissionDenied for an object in the way that may not be replaced."""
        bucket_rows.lock(connection)
        owner = bucket_rows.visible(connection, self.bucket, project, writing=True).project
        before = {name: bucket_rows.find(connection, self.bucket, check_object_name(name)) for name in self.contents}
        for previous in before.values():
            Conditions(may_replace=may_replace).check(previous)  # of all, so that an error has changed nothing
        replaced = []
        for name, content in self.contents.items():
            placed, previous = content_name(content.sha256, owner), before[name]
            if previous is not None and previous.content != placed:
                replaced.append(previous.content)
            self.buckets.content.place(content, placed)
            fields = replace(PLAIN, owner=owner, content_type=self.content_type(name))
            self.buckets.write(connection, self.bucket, name, content, fields)
        return replaced


@contextmanager
def receive(
    buckets: Buckets, bucket: str, files: Mapping[str, Path], kms_key: str = "", content_type: ContentType = plain
) -> Iterator[StagedFiles]:
    """Durable copies of files by their later object names, encrypted under the key if there is one. Raises
    ResourceExhausted."""
    with ExitStack() as stack:
        contents = {}
        for name, source in files.items():
            spool = stack.enter_context(buckets.spool(bucket, kms_key))
            with source.open("rb") as file:
                spool.read_from(file)
            contents[name] = spool.finish()
        yield StagedFiles(buckets, bucket, contents, content_type)
