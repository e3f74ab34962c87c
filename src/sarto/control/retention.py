"""Removal of leftovers while the service runs: files of dead epochs and ended jobs, and unused caches.

Files that a running attempt or a database row uses are never removed. Published checkpoints, models and objects stay
until a user deletes them. Every removal can be repeated, and several servers can collect in one home.
"""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import orjson
import sqlalchemy as sa

from sarto.contract.run_folder import CHECKPOINTS_FOLDER, DATA_FOLDER, EVALUATION_FOLDER, LABELLED_FOLDER, RESUME_FOLDER
from sarto.control.aip import times
from sarto.control.audit import chain
from sarto.control.context import Control
from sarto.control.models import checkpoint_deletion
from sarto.control.models.checkpoint_deletion import UnreferencedFiles
from sarto.schema.tuning_jobs import FINAL_STATES, JobState
from sarto.storage.buckets.bucket_rows import lock
from sarto.storage.buckets.uploads import Uploads
from sarto.storage.database.tables import (
    batch_prediction_job,
    bucket,
    checkpoint,
    dataset_evaluation,
    held_object,
    model_export,
    model_version,
    stored_object,
    tuning_job,
)
from sarto.system.failpoints import around
from sarto.system.loop import Loop

logger = logging.getLogger(__name__)

COLLECT_SECONDS = 600.0
DAY_SECONDS = 86_400.0
STALE_SECONDS = DAY_SECONDS
"""Least age of a file without a row before it is removed: a row may be about to name it."""
SETTLED_SECONDS = 600.0
"""Time after a job's end before its folder is changed."""
MOST_LOG_BYTES = 10_000_000
AT_ONCE = 500
ARTIFACTS = "tuningJobs/"


class Collector:
    """Call `start` and `stop` once each; works in a thread of its own."""

    def __init__(self, control: Control) -> None:
        self._control = control
        self._loop = Loop("retention", self._act, COLLECT_SECONDS, first=COLLECT_SECONDS)

    def start(self) -> None:
        self._loop.start()

    def stop(self) -> None:
        self._loop.stop()

    def _act(self) -> None:
        collect(self._control)


def collect(control: Control) -> Counter[str]:
    """One round; returns the number of removed files by kind. Errors are logged, and tried again the next time."""
    removed: Counter[str] = Counter()
    for kind, step in _STEPS.items():
        try:
            removed[kind] = step(control)
        except Exception:
            logger.exception("collecting failed", extra={"kind": kind})
    if removed.total():
        logger.info("leftovers collected", extra={kind: count for kind, count in removed.items() if count})
    return removed


def _within(folder: Path) -> list[Path]:
    """The entries of a folder, which may not exist in a new home."""
    return list(folder.iterdir()) if folder.is_dir() else []


def _run_folders(control: Control) -> int:
    """Remove from live jobs the checkpoints of earlier epochs. Remove from ended jobs first resume points and
    unpublished checkpoints, and after `keep_run_days` the rest. Remove folders of deleted jobs, exports and
    evaluations."""
    removed = 0
    folders = {path.name: path for path in _within(control.home / "runs") if path.is_dir()}
    names = sorted(folders)
    for start in range(0, len(names), AT_ONCE):
        some = names[start : start + AT_ONCE]
        with control.database.reading() as connection:
            now = control.database.now(connection)
            rows = connection.execute(sa.select(tuning_job).where(tuning_job.c.id.in_(some))).all()
            at_work = {
                f"{kind}-{operation}"
                for kind, table in (("export", model_export), ("evaluation", dataset_evaluation))
                for operation in connection.execute(sa.select(table.c.operation)).scalars()
            }
        jobs = {row.id: row for row in rows}
        for name in some:
            row = jobs.get(name)
            if row is None:
                is_needed = name in at_work or not _is_stale(folders[name])
                removed += 0 if is_needed else _remove(folders[name])
            elif not JobState(row.state).is_final:
                removed += sum(_remove(path) for path in _of_dead_epochs(folders[name], row.lease_epoch))
            else:
                ended = now - times.seconds(orjson.loads(row.resource)["endTime"])
                removed += sum(_remove(path) for path in _of_ended(control, folders[name], ended))
    return removed


def _of_dead_epochs(folder: Path, epoch: int) -> Iterator[Path]:
    """Checkpoints of epochs before the current one, which nothing reads. Their logs and progress stay."""
    for path in folder.iterdir():
        if path.name.isdigit() and int(path.name) < epoch and (path / CHECKPOINTS_FOLDER).is_dir():
            yield path / CHECKPOINTS_FOLDER


def _of_ended(control: Control, folder: Path, seconds: float) -> Iterator[Path]:
    if seconds < SETTLED_SECONDS:
        return
    keep = control.limits.keep_run_days * DAY_SECONDS
    if keep and seconds > keep:
        yield from (path for path in folder.iterdir() if path.name != DATA_FOLDER)
        yield from (folder / DATA_FOLDER).glob("*.jsonl")  # the other files name the data
        return
    resume = folder / RESUME_FOLDER
    if resume.is_dir():
        yield from (path for path in resume.iterdir() if path.name not in (EVALUATION_FOLDER, LABELLED_FOLDER))
    yield from (path / CHECKPOINTS_FOLDER for path in folder.iterdir() if (path / CHECKPOINTS_FOLDER).is_dir())


def _adapters(control: Control) -> int:
    """Remove adapter folders without a checkpoint. The lock that names objects excludes new references meanwhile."""
    removed = 0
    for folder in _within(control.home / "adapters"):
        if not _is_stale(folder):
            continue
        with control.database.transaction() as connection:
            lock(connection)
            named = sa.select(checkpoint.c.job).where(checkpoint.c.adapter_digest == folder.name).limit(1)
            if connection.execute(named).first() is None:
                removed += _remove(folder)
    return removed


def _artifacts(control: Control) -> int:
    """Remove checkpoints in the service's buckets whose job and model were deleted, after a crash in a deletion."""
    removed = 0
    ours = sa.select(bucket).where(bucket.c.name.like("sarto-%-models"))
    with control.database.reading() as connection:
        now = control.database.now(connection)
        places = connection.execute(ours).all()
    for root in places:
        token = ""
        while True:
            page = control.buckets.list(root.name, ARTIFACTS, "/", page_token=token, project=root.project)
            for prefix in page.prefixes:
                if not _is_anyones(control, root.project, root.name, prefix, now):
                    uri = f"gs://{root.name}/{prefix}checkpoints/"
                    checkpoint_deletion.remove(control, UnreferencedFiles(root.project, frozenset({uri}), frozenset()))
                    removed += 1
            if not (token := page.next_token):
                break
    return removed


def _is_anyones(control: Control, project: str, bucket_name: str, prefix: str, now: float) -> bool:
    job = prefix.removeprefix(ARTIFACTS).rstrip("/")
    owners = (
        sa.select(tuning_job.c.id).where(tuning_job.c.project == project, tuning_job.c.id == job),
        sa.select(checkpoint.c.job).where(checkpoint.c.project == project, checkpoint.c.job == job),
        sa.select(model_version.c.job).where(model_version.c.project == project, model_version.c.job == job),
    )
    below = sa.and_(
        stored_object.c.bucket == bucket_name,
        stored_object.c.name >= f"{prefix}checkpoints/",
        stored_object.c.name < f"{prefix}checkpoints0",
    )
    with control.database.reading() as connection:
        if any(connection.execute(query.limit(1)).first() for query in owners):
            return True
        newest = connection.execute(sa.select(sa.func.max(stored_object.c.create_time)).where(below)).scalar()
    return newest is None or newest > now - STALE_SECONDS


def _holds(control: Control) -> int:
    """Remove holds of ended jobs and operations."""
    jobs = (tuning_job, batch_prediction_job)
    at_work = [
        sa.exists().where(
            table.c.project == held_object.c.project,
            table.c.id == held_object.c.holder,
            table.c.state.not_in(list(map(str, FINAL_STATES))),
        )
        for table in jobs
    ]
    at_work.append(
        sa.exists().where(
            dataset_evaluation.c.project == held_object.c.project,
            dataset_evaluation.c.operation == held_object.c.holder,
        )
    )
    with control.database.transaction() as connection:
        return connection.execute(held_object.delete().where(sa.not_(sa.or_(*at_work)))).rowcount


def _content(control: Control) -> int:
    """Remove bytes of buckets without references, and leftovers of uploads."""
    return control.buckets.sweep() + Uploads(control.buckets).sweep(time.time())


def _caches(control: Control) -> int:
    """Remove tokenised data that was not read for `keep_cache_days`."""
    days, removed = control.limits.keep_cache_days, 0
    for folder in _within(control.home / "cache" / "tokens") if days else ():
        folders = _within(folder)
        is_store = any(path.is_file() for path in folders)  # of a version that had one cache for all projects
        for cache in [folder] if is_store else folders:
            removed += _remove(cache) if _is_stale(cache, days * DAY_SECONDS) else 0
    return removed


def _audit(control: Control) -> int:
    """Remove entries of the audit log after `keep_audit_days`; they are exported to files."""
    return chain.remove_old(control.database, control.home, control.limits.keep_audit_days)


def _logs(control: Control) -> int:
    """Rotate logs to which child processes append: one older file is kept. Appending writes continue at the new end."""
    removed = 0
    for path in (control.home / "logs").glob("*.log"):
        if path.name != "serve.log" and path.stat().st_size > MOST_LOG_BYTES:  # serve.log is turned over by its writer
            shutil.copyfile(path, path.with_suffix(".log.1"))
            os.truncate(path, 0)
            removed += 1
    return removed


def _is_stale(path: Path, seconds: float = STALE_SECONDS) -> bool:
    """Whether it and its direct content were not written or read for this time; False if it does not exist."""
    try:
        times = (
            [path.stat().st_mtime, *(max(child.stat()[7:9]) for child in path.iterdir())]
            if path.is_dir()
            else [path.stat().st_mtime]
        )
    except FileNotFoundError:
        return False
    return time.time() - max(times) > seconds


def _remove(path: Path) -> int:
    """Remove it; returns 1 if it no longer exists."""
    with around("remove"):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    return 0 if path.exists() else 1


_STEPS: dict[str, Callable[[Control], int]] = {
    "run_folders": _run_folders,
    "adapters": _adapters,
    "artifacts": _artifacts,
    "holds": _holds,
    "content": _content,
    "caches": _caches,
    "audit": _audit,
    "logs": _logs,
}
