"""The files of a run's checkpoints: kept on this machine under their content's name, and copied into buckets.

Bytes first, under no name; `Received.write` gives them their names in a transaction of the caller's. Used by
`publishing`; knows no lease.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import orjson
from sqlalchemy.engine import Connection

from sarto import failpoints
from sarto.control import projects
from sarto.control.context import AnyRow, Control
from sarto.errors import AlreadyExists, FailedPrecondition, NotFound
from sarto.failpoints import around
from sarto.names import new_id, parse_gs_uri
from sarto.storage import together
from sarto.storage.buckets import Buckets
from sarto.storage.content import Content
from sarto.storage.opened import path_in

OPEN_FOLDER = "postprocess/node-0/checkpoints"


@dataclass(frozen=True)
class Kept:
    """An adapter on this machine, named by its content."""

    digest: str
    folder: Path


def artifact_uri(control: Control, row: AnyRow) -> str:
    """The gs:// folder of all of a job's checkpoints, with `/` at its end; its bucket exists after this."""
    output = orjson.loads(row.resource).get("outputUri")
    if output:
        parse_gs_uri(output, "tuning_job.output_uri")
        return f"{output.rstrip('/')}/{OPEN_FOLDER}/"
    project = projects.find(control.database, row.project)
    assert project is not None
    bucket = f"sarto-{project.id}-models"
    if not _has_bucket(control, bucket, row.project):
        try:
            control.buckets.create_bucket(row.project, bucket)
        except AlreadyExists:
            if not _has_bucket(control, bucket, row.project):  # another job of the project may have made it just now
                words = f"The bucket gs://{bucket} for tuned models belongs to another project."
                raise FailedPrecondition(words) from None
    return f"gs://{bucket}/tuningJobs/{row.id}/checkpoints/"


def _has_bucket(control: Control, bucket: str, project: str) -> bool:
    try:
        control.buckets.bucket(bucket, project)
    except NotFound:
        return False
    return True


def keep(control: Control, source: Path, files: dict[str, str], kms_key: str = "") -> Kept:
    """The adapter's files under a name made of their digests (and their key), so that equal adapters are kept once."""
    listed = "".join(f"{name}:{sha}\n" for name, sha in sorted(files.items()))
    digest = hashlib.sha256((listed + kms_key).encode()).hexdigest()
    folder = control.adapter_folder(digest)
    if folder.is_dir():
        os.utime(folder)  # it is needed again: the collection of leftovers goes by age
    else:
        part = folder.with_name(f".{digest}.{new_id()}")
        part.mkdir(parents=True)
        for name in files:
            if kms_key:
                control.sealer.seal_file(kms_key, source / name, part / name, path_in(folder, name))
            else:
                _link(source / name, part / name)
        try:
            with around("rename"):
                part.rename(folder)
        except OSError:  # another supervisor kept the same adapter meanwhile
            shutil.rmtree(part)
    return Kept(digest, folder)


def check_kept(kept: Kept) -> None:
    """Call where objects are named, so that nothing is collected meanwhile. Raises FileNotFoundError."""
    if not kept.folder.is_dir():
        raise FileNotFoundError(f"{kept.folder} was collected before it was named")


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)


@dataclass(frozen=True)
class Received:
    """Copies of a folder's files that are on the disk and have no name in their bucket yet."""

    buckets: Buckets
    bucket: str
    received: dict[str, Content]

    def write(self, connection: Connection, project: str) -> list[str]:
        """Name them, under the lease that the transaction holds; gives the content they replaced."""
        return together.write(self.buckets, connection, self.bucket, self.received, project)


@contextmanager
def received(control: Control, folder: Path, uri: str, kms_key: str = "") -> Iterator[Received]:
    """Copies of a folder's plain files, sealed under the key if there is one."""
    bucket, prefix = parse_gs_uri(uri, "tuning_job.output_uri")
    files = {prefix + path.name: path for path in sorted(folder.iterdir())}
    failpoints.reached("receive before")
    with together.receive(control.buckets, bucket, files, kms_key) as files_received:
        failpoints.reached("receive after")
        yield Received(control.buckets, bucket, files_received)
