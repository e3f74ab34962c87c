"""Several objects made real at once, in a transaction of the caller's: all of them with the rows beside them, or none.

`receive` puts the bytes on the disk under no name; `write`, inside the transaction, gives them their names. What a
caller that dies in between leaves behind is collected by `Buckets.sweep`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from sqlalchemy.engine import Connection

from sarto.storage import rows
from sarto.storage.buckets import PLAIN, Buckets
from sarto.storage.content import Content
from sarto.storage.objects import check_object_name


@contextmanager
def receive(
    buckets: Buckets, bucket: str, files: Mapping[str, Path], kms_key: str = ""
) -> Iterator[dict[str, Content]]:
    """Copies of files by the object names they will have, complete and durable. Raises ResourceExhausted."""
    with ExitStack() as stack:
        received = {}
        for name, source in files.items():
            spool = stack.enter_context(buckets.spool(bucket, kms_key))
            with source.open("rb") as file:
                spool.read_from(file)
            received[name] = spool.finish()
        yield received


def write(
    buckets: Buckets, connection: Connection, bucket: str, received: Mapping[str, Content], project: str
) -> list[str]:
    """Make them the live objects; gives the content they replaced, for `Buckets.collect` after the commit."""
    rows.lock(connection)
    rows.visible(connection, bucket, project, writing=True)
    replaced = []
    for name, content in received.items():
        found = rows.find(connection, bucket, check_object_name(name))
        if found is not None and found.sha256 != content.sha256:
            replaced.append(found.sha256)
        buckets.content.place(content)
        buckets.write(connection, bucket, name, content, PLAIN)
    return replaced
