"""The files of checkpoints: adapters on this machine, named by their digest, and copies in buckets.

The bytes are stored first, under no name; `StagedFiles.write` names them in the caller's transaction.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sarto.control.access import run_identity
from sarto.control.context import ADAPTERS, AnyRow, Control
from sarto.control.jobs.job_row import job_of, plan_of
from sarto.control.models.model_bucket import OPEN_FOLDER, model_bucket
from sarto.names import parse_gs_uri
from sarto.storage.buckets import batch_write
from sarto.storage.buckets.batch_write import ContentType, StagedFiles
from sarto.storage.encryption.unsealed_cache import path_in
from sarto.system import failpoints
from sarto.system.files import whole_folder


@dataclass(frozen=True)
class StoredAdapter:
    """An adapter on this machine, named by its project and its content."""

    digest: str
    name: str
    """Relative to the home, as rows have it."""
    folder: Path


def artifact_uri(control: Control, row: AnyRow) -> str:
    """The gs:// folder of all of a job's checkpoints, with a final `/`; creates its bucket."""
    if output := job_of(row).output_uri:
        parse_gs_uri(output, "tuning_job.output_uri")
        return f"{output.rstrip('/')}/{OPEN_FOLDER}/"
    return f"gs://{model_bucket(control, row.project)}/tuningJobs/{row.id}/checkpoints/"


def may_replace(control: Control, row: AnyRow) -> bool:
    """Whether objects below a job's output folder may be replaced: both its maker and its run identity need the right.
    In the project's bucket for models only the service writes."""
    job = job_of(row)
    if not job.output_uri:
        return True
    return plan_of(row).may_replace and run_identity.may_replace(
        control, row.project, job.output_uri, job.service_account
    )


def keep(control: Control, project: str, source: Path, files: dict[str, str], kms_key: str = "") -> StoredAdapter:
    """Store the adapter's files under a digest of project, content and key, so that equal adapters of a project are
    stored once."""
    listed = "".join(f"{name}:{sha}\n" for name, sha in sorted(files.items()))
    digest = hashlib.sha256(f"{project}\n{listed}{kms_key}".encode()).hexdigest()
    kept_as = f"{ADAPTERS}/{digest}"
    folder = control.adapter_folder(kept_as)
    if folder.is_dir():
        os.utime(folder)  # it is needed again: the collection of leftovers goes by age
    else:
        try:
            with whole_folder(folder) as part:
                for name in files:
                    if kms_key:
                        control.sealer.seal_file(kms_key, source / name, part / name, path_in(folder, name))
                    else:
                        _link(source / name, part / name)
        except OSError:
            if not folder.is_dir():  # else another supervisor kept the same adapter meanwhile
                raise
    return StoredAdapter(digest, kept_as, folder)


def check_stored(adapter: StoredAdapter) -> None:
    """Check that the files exist. Call it where objects are named, so that nothing is collected meanwhile. Raises
    FileNotFoundError."""
    if not adapter.folder.is_dir():
        raise FileNotFoundError(f"{adapter.folder} was collected before it was named")


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)


@contextmanager
def received(
    control: Control, folder: Path, uri: str, kms_key: str = "", content_type: ContentType = batch_write.plain
) -> Iterator[StagedFiles]:
    """Copies of the files of a folder and of those in it, for objects below `uri`."""
    bucket, prefix = parse_gs_uri(f"{uri.rstrip('/')}/", "output_uri")
    files = {prefix + path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    failpoints.reached("receive before")
    with batch_write.receive(control.buckets, bucket, files, kms_key, content_type) as copies:
        failpoints.reached("receive after")
        yield copies
