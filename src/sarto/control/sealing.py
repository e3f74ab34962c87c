"""Where a run works, and what becomes of its files: for a job without a key its folder in the home; for a job with one
a private folder, whose files are sealed into the home as they come and opened again by the next attempt.

The run knows nothing of this and never sees a key. What it says of a keyed job goes into the database only as far as it
quotes no data. Used by `attempts`, and by the doors that show what a job left.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import time
from pathlib import Path
from typing import Any, BinaryIO

from sarto.control.context import Control
from sarto.control.leases import Lease
from sarto.errors import FailedPrecondition, SartoError
from sarto.schema.runs import DataStats, Progress, RunResult
from sarto.storage import encryption
from sarto.storage.encryption import KeyUnusable

logger = logging.getLogger(__name__)

POINT = "resume/resume.safetensors"
LASTING = ("data", "resume")
"""Folders that the next attempt needs."""
CHECKS_PER_LEASE = 4
SEALED_WORDS = "The rest may quote the data and is sealed with the job's files."


class Workplace:
    """`open`, then `keep` as the run goes on, and `close`; each does nothing for a job without a key."""

    def __init__(self, control: Control, lease: Lease, key: str) -> None:
        self.key = key
        self._control, self._lease = control, lease
        self._home = control.job_folder(lease.job)
        self._sealed: dict[str, tuple[int, int, int]] = {}
        self._checked_at = 0.0
        self.folder, self.cache = self._home, control.home / "cache" / "tokens"

    @property
    def run_folder(self) -> Path:
        """This attempt's own."""
        return self.folder / str(self._lease.epoch)

    def open(self) -> None:
        """Have what earlier attempts left lie in the open. Raises KeyUnusable and FailedPrecondition."""
        if not self.key:
            return
        self.check()
        private = self._control.sealer.private.new(f"{self._lease.job}-{self._lease.epoch}")
        self.folder, self.cache = private / "job", private / "tokens"
        for part in LASTING:
            try:
                self._open(part)
            except KeyUnusable:
                raise
            except FailedPrecondition as fault:
                if part == "data":
                    raise
                logger.warning("resume point not used", extra={"job": self._lease.job, "reason": fault.message})
                shutil.rmtree(self.folder / part, ignore_errors=True)

    def check(self) -> None:
        """Whether the key may still be used; asks it a few times in a lease."""
        if not self.key:
            return
        now = time.monotonic()
        if now - self._checked_at >= self._control.limits.lease_seconds / CHECKS_PER_LEASE:
            self._control.sealer.keys.check(self.key)
            self._checked_at = now

    def keep(self, *, whole: bool = False) -> None:
        """Seal what is new: at once what is written once, with each resume point what belongs to it, and `whole` also
        what grows as long as the run lives. The point itself comes last, so that all it refers to is there."""
        if not self.key:
            return
        point, snapshot = self.folder / POINT, self.folder.parent / "point"
        snapshot.unlink(missing_ok=True)
        if point.exists() and self._sealed.get(POINT) != (mark := _mark(point)):
            os.link(point, snapshot)
            mark = _mark(snapshot)
        for path in sorted(self.folder.rglob("*")):
            name = str(path.relative_to(self.folder))
            if name == POINT or not (whole or snapshot.exists() or _is_written_once(name)) or _is_left(name):
                continue
            try:
                if path.is_file() and self._sealed.get(name) != (found := _mark(path)):
                    self._seal(path, name)
                    self._sealed[name] = found
            except FileNotFoundError:
                continue  # it was taken back meanwhile
        if snapshot.exists():
            self._seal(snapshot, POINT)
            self._sealed[POINT] = mark
            snapshot.unlink()

    def end(self) -> None:
        """The run is over: seal the rest, as far as the key allows."""
        try:
            self.keep(whole=True)
        except (SartoError, OSError) as fault:
            logger.warning("run not kept", extra={"job": self._lease.job, "reason": str(fault)})

    def close(self) -> None:
        """Nothing stays in the open."""
        if self.folder != self._home:
            shutil.rmtree(self.folder.parent, ignore_errors=True)

    def told(self, said: Progress) -> Progress:
        """As much of what the run said as may be written into the database."""
        if not self.key:
            return said
        changes: dict[str, Any] = {"message": _unquoted(said.message)}
        if said.data is not None:
            changes["data"] = _without_quotes(said.data)
        run = said.assessment.run if said.assessment is not None else None
        if said.assessment is not None and run is not None and "error" in run:
            error = {"code": run["error"]["code"], "message": f"The evaluation failed. {SEALED_WORDS}"}
            changes["assessment"] = said.assessment.model_copy(update={"run": {**run, "error": error}})
        return said.model_copy(update=changes)

    def result(self, found: RunResult) -> RunResult:
        """The same of its result."""
        if not self.key:
            return found
        changes: dict[str, Any] = {}
        if found.data is not None:
            changes["data"] = _without_quotes(found.data)
        if found.error is not None:
            changes["error"] = status_without_quotes(found.error)
        return found.model_copy(update=changes)

    def _open(self, part: str) -> None:
        for source in (self._home / part).rglob("*"):
            name = str(source.relative_to(self._home))
            if source.is_file() and not _is_hidden(name):
                target = self.folder / name
                self._control.sealer.open_file(source, target, job_path(self._lease.job, name))
                self._sealed[name] = _mark(target)

    def _seal(self, source: Path, name: str) -> None:
        self._control.sealer.seal_file(self.key, source, self._home / name, job_path(self._lease.job, name))


def job_path(job: str, name: str) -> str:
    """What a sealed file of a job is bound to."""
    return f"runs/{job}/{name}"


def read(control: Control, job: str, path: Path) -> bytes:
    """A file that a job left in its folder, opened if it is sealed. Raises FailedPrecondition as its key does."""
    with open_file(control, job, path) as file:
        return file.read()


def open_file(control: Control, job: str, path: Path) -> BinaryIO:
    """The same for a large one; the caller closes it."""
    if not encryption.is_sealed(path):
        return path.open("rb")
    return control.sealer.open(path, job_path(job, str(path.relative_to(control.job_folder(job)))))


def adapter(control: Control, folder: str) -> str:
    """The folder with an adapter's plain files. Raises FailedPrecondition as its key does, NotFound."""
    return str(control.sealer.opened.open(Path(folder))) if key_of(folder) else folder


def key_of(folder: str) -> str:
    """The key that an adapter is sealed under; empty for one in the open, and for none at all."""
    try:
        source = next(Path(folder).iterdir()) if folder else None
        return encryption.key_of(source, source.name) if source and encryption.is_sealed(source) else ""
    except (FileNotFoundError, StopIteration):
        return ""  # whoever reads it says so


def status_without_quotes(status: dict[str, Any]) -> dict[str, Any]:
    """A run's status: its first line, which names files, counts and limits; of its details, where the faults are."""
    head, *rest = re.split(r"[\n\t]", str(status.get("message", "")), maxsplit=1)
    details = [
        {**one, "fieldViolations": [{"field": fault["field"]} for fault in one["fieldViolations"]]}
        for one in status.get("details", ())
        if "fieldViolations" in one
    ]
    message = f"{head} {SEALED_WORDS}" if rest or details else head
    return {"code": status["code"], "message": message} | ({"details": details} if details else {})


def _without_quotes(data: DataStats) -> DataStats:
    reasons = [SEALED_WORDS] * len(data.dropped_reasons)
    return data.model_copy(update={"sample_contents": [], "dropped_reasons": reasons})


def _unquoted(words: str) -> str:
    return words.partition(": ")[0]


def _is_written_once(name: str) -> bool:
    parts = name.split("/")
    return parts[0] == "data" or (len(parts) == 2 and parts[0].isdigit() and parts[1].endswith(".json"))


def _is_left(name: str) -> bool:
    """Half-written files; and the run's own checkpoints, which lie in `resume` too and are published."""
    parts = name.split("/")
    return _is_hidden(name) or (len(parts) > 2 and parts[0].isdigit() and parts[1] == "checkpoints")


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") for part in name.split("/"))


def _mark(path: Path) -> tuple[int, int, int]:
    found = path.stat()
    return found.st_ino, found.st_mtime_ns, found.st_size
