"""What is removed while the service runs: what dead epochs and ended jobs leave behind, and what nobody reads.

Never what a live epoch may read, nor what a row refers to: published checkpoints, models and objects end only when
someone deletes them. Every removal may be repeated, and several servers may collect in one home.
"""

from __future__ import annotations

import logging
import os
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import orjson
import sqlalchemy as sa

from sarto.control import events, leftovers
from sarto.control.context import Control
from sarto.control.leftovers import Leftovers
from sarto.failpoints import around
from sarto.schema.runs import EVALUATION_FOLDER
from sarto.schema.tuning_jobs import JobState
from sarto.storage.rows import lock
from sarto.storage.tables import (
    bucket,
    checkpoint,
    dataset_evaluation,
    model_export,
    model_version,
    stored_object,
    tuning_job,
)
from sarto.storage.uploads import Uploads

logger = logging.getLogger(__name__)

COLLECT_SECONDS = 600.0
DAY_SECONDS = 86_400.0
STALE_SECONDS = DAY_SECONDS
"""What no row names is left alone for so long: someone may be about to name it."""
SETTLED_SECONDS = 600.0
"""An ended job's folder is left alone for so long."""
MOST_LOG_BYTES = 10_000_000
AT_ONCE = 500
ARTIFACTS = "tuningJobs/"


class Collector:
    """`start` and `stop` once each; works in a thread of its own."""

    def __init__(self, control: Control) -> None:
        self._control = control
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="retention", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join()

    def _loop(self) -> None:
        while not self._stopping.wait(COLLECT_SECONDS):
            collect(self._control)


def collect(control: Control) -> Counter[str]:
    """One round; gives how much of each kind was removed. What goes wrong is logged, and tried again next time."""
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
    """A home that has had no job yet lacks the folder."""
    return list(folder.iterdir()) if folder.is_dir() else []


def _run_folders(control: Control) -> int:
    """Of live jobs the checkpoints of dead epochs; of ended jobs first resume points and unpublished checkpoints, after
    `keep_run_days` the rest; folders of jobs, exports and evaluations that are no more."""
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
                ended = now - events.seconds(orjson.loads(row.resource)["endTime"])
                removed += sum(_remove(path) for path in _of_ended(control, folders[name], ended))
    return removed


def _of_dead_epochs(folder: Path, epoch: int) -> Iterator[Path]:
    """Epochs only grow: what is behind the current one is nobody's. Its log and progress stay."""
    for path in folder.iterdir():
        if path.name.isdigit() and int(path.name) < epoch and (path / "checkpoints").is_dir():
            yield path / "checkpoints"


def _of_ended(control: Control, folder: Path, seconds: float) -> Iterator[Path]:
    if seconds < SETTLED_SECONDS:
        return
    keep = control.limits.keep_run_days * DAY_SECONDS
    if keep and seconds > keep:
        yield from (path for path in folder.iterdir() if path.name != "data")
        yield from (folder / "data").glob("*.jsonl")  # what lies beside them says which data it was
        return
    resume = folder / "resume"
    if resume.is_dir():
        yield from (path for path in resume.iterdir() if path.name != EVALUATION_FOLDER)
    yield from (path / "checkpoints" for path in folder.iterdir() if (path / "checkpoints").is_dir())


def _adapters(control: Control) -> int:
    """Adapter folders that no checkpoint has; by digest, for in a home that was moved rows name old paths. The lock
    that names objects keeps new references out meanwhile."""
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
    """Checkpoints in the service's buckets whose job and model are gone: the one who deleted them died in between."""
    removed = 0
    ours = sa.select(bucket).where(bucket.c.name.like("sarto-%-models"))
    with control.database.reading() as connection:
        now = control.database.now(connection)
        places = connection.execute(ours).all()
    for place in places:
        token = ""
        while True:
            page = control.buckets.list(place.name, ARTIFACTS, "/", page_token=token, project=place.project)
            for prefix in page.prefixes:
                if not _is_anyones(control, place.project, place.name, prefix, now):
                    uri = f"gs://{place.name}/{prefix}checkpoints/"
                    leftovers.remove(control, Leftovers(place.project, frozenset({uri}), frozenset()))
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


def _content(control: Control) -> int:
    """Bytes of buckets that no object refers to, and what uploads left."""
    return control.buckets.sweep() + Uploads(control.buckets).sweep(time.time())


def _caches(control: Control) -> int:
    """Tokenised data that nothing has read for `keep_cache_days`."""
    folder, days = control.home / "cache" / "tokens", control.limits.keep_cache_days
    if not days or not folder.is_dir():
        return 0
    return sum(_remove(place) for place in folder.iterdir() if _is_stale(place, days * DAY_SECONDS))


def _logs(control: Control) -> int:
    """Logs that child processes write on and on: one older piece is kept. They write at the end, wherever that is."""
    removed = 0
    for path in (control.home / "logs").glob("*.log"):
        if path.name != "serve.log" and path.stat().st_size > MOST_LOG_BYTES:  # serve.log is turned over by its writer
            shutil.copyfile(path, path.with_suffix(".log.1"))
            os.truncate(path, 0)
            removed += 1
    return removed


def _is_stale(path: Path, seconds: float = STALE_SECONDS) -> bool:
    """Neither it nor what lies directly in it was written or read for so long; False for what is gone."""
    try:
        times = (
            [path.stat().st_mtime, *(max(found.stat()[7:9]) for found in path.iterdir())]
            if path.is_dir()
            else [path.stat().st_mtime]
        )
    except FileNotFoundError:
        return False
    return time.time() - max(times) > seconds


def _remove(path: Path) -> int:
    """1 when it is gone now."""
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
    "content": _content,
    "caches": _caches,
    "logs": _logs,
}
