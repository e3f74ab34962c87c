"""The working folder of a run.

Without a customer key this is the run folder in the home. With a customer key it is a private folder. Each of its files
is encrypted before it is written to the home folder, and decrypted again for the next attempt. The run never gets a
key. Progress of a keyed job is stored in the database without quoted training data.
"""

from __future__ import annotations

import logging
import os
import shutil
import time
from pathlib import Path
from typing import Any

from sarto.contract.places import Places
from sarto.contract.run_folder import CHECKPOINTS_FOLDER, DATA_FOLDER, RESUME_FILE, RESUME_FOLDER
from sarto.contract.tuning_run import Progress, RunResult
from sarto.control.access.quoting import SEALED_WORDS, status_without_quotes, unquoted
from sarto.control.context import Control
from sarto.control.runs.redaction import without_quotes
from sarto.control.runs.sealed_files import job_path
from sarto.control.scheduling.leases import Lease
from sarto.errors import FailedPrecondition, SartoError
from sarto.storage.encryption.envelope import KeyUnusable

logger = logging.getLogger(__name__)

POINT = f"{RESUME_FOLDER}/{RESUME_FILE}"
LASTING = (DATA_FOLDER, RESUME_FOLDER)
"""Folders that the next attempt needs."""
CHECKS_PER_LEASE = 4


class Workspace:
    """Call `open`, then `keep` repeatedly, and `close`; each has no effect for a job without a key."""

    def __init__(self, control: Control, lease: Lease, key: str) -> None:
        self.key = key
        self._control, self._lease = control, lease
        self._home = control.job_folder(lease.job)
        self._sealed: dict[str, tuple[int, int, int]] = {}
        self._checked_at = 0.0
        self.folder, self.cache = self._home, control.token_cache(lease.project)

    @property
    def places(self) -> Places:
        """Where this server has the files that the run's spec names."""
        return self._control.places_of(self.folder, self.cache)

    @property
    def run_folder(self) -> Path:
        """This attempt's own folder."""
        return self.folder / str(self._lease.epoch)

    def open(self) -> None:
        """Decrypt the files of earlier attempts. Raises KeyUnusable and FailedPrecondition."""
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
                if part == DATA_FOLDER:
                    raise
                logger.warning("resume point not used", extra={"job": self._lease.job, "reason": fault.message})
                shutil.rmtree(self.folder / part, ignore_errors=True)

    def check(self) -> None:
        """Check that the key can be used, a few times in a lease."""
        if not self.key:
            return
        now = time.monotonic()
        if now - self._checked_at >= self._control.limits.lease_seconds / CHECKS_PER_LEASE:
            self._control.sealer.keys.check(self.key)
            self._checked_at = now

    def keep(self, *, whole: bool = False) -> None:
        """Encrypt new files: those that are written once at once, those of a resume point with it, and with `whole`
        also those that grow during the run. The resume point comes last, so that the files to which it refers exist."""
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
                if path.is_file() and self._sealed.get(name) != (current := _mark(path)):
                    self._seal(path, name)
                    self._sealed[name] = current
            except FileNotFoundError:
                continue  # it was taken back meanwhile
        if snapshot.exists():
            self._seal(snapshot, POINT)
            self._sealed[POINT] = mark
            snapshot.unlink()

    def end(self) -> None:
        """After the run: encrypt the remaining files, as far as the key allows."""
        try:
            self.keep(whole=True)
        except (SartoError, OSError) as fault:
            logger.warning("run not kept", extra={"job": self._lease.job, "reason": str(fault)})

    def close(self) -> None:
        """Remove the plain files."""
        if self.folder != self._home:
            shutil.rmtree(self.folder.parent, ignore_errors=True)

    def redacted(self, line: Progress) -> Progress:
        """The run's progress message, without quoted training data when the job has a key."""
        if not self.key:
            return line
        changes: dict[str, Any] = {"message": unquoted(line.message)}
        if line.data is not None:
            changes["data"] = without_quotes(line.data)
        run = line.assessment.run if line.assessment is not None else None
        if line.assessment is not None and run is not None and "error" in run:
            error = {"code": run["error"]["code"], "message": f"The evaluation failed. {SEALED_WORDS}"}
            changes["assessment"] = line.assessment.model_copy(update={"run": {**run, "error": error}})
        return line.model_copy(update=changes)

    def result(self, outcome: RunResult) -> RunResult:
        """The run's result, without quoted training data when the job has a key."""
        if not self.key:
            return outcome
        changes: dict[str, Any] = {}
        if outcome.data is not None:
            changes["data"] = without_quotes(outcome.data)
        if outcome.error is not None:
            changes["error"] = status_without_quotes(outcome.error)
        return outcome.model_copy(update=changes)

    def _open(self, part: str) -> None:
        for source in (self._home / part).rglob("*"):
            name = str(source.relative_to(self._home))
            if source.is_file() and not _is_hidden(name):
                target = self.folder / name
                self._control.sealer.open_file(source, target, job_path(self._lease.job, name))
                self._sealed[name] = _mark(target)

    def _seal(self, source: Path, name: str) -> None:
        self._control.sealer.seal_file(self.key, source, self._home / name, job_path(self._lease.job, name))


def _is_written_once(name: str) -> bool:
    parts = name.split("/")
    return parts[0] == DATA_FOLDER or (len(parts) == 2 and parts[0].isdigit() and parts[1].endswith(".json"))


def _is_left(name: str) -> bool:
    """Whether a file is not kept: unfinished files, and the run's own checkpoints, which are in `resume` too and are
    published."""
    parts = name.split("/")
    return _is_hidden(name) or (len(parts) > 2 and parts[0].isdigit() and parts[1] == CHECKPOINTS_FOLDER)


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") for part in name.split("/"))


def _mark(path: Path) -> tuple[int, int, int]:
    status = path.stat()
    return status.st_ino, status.st_mtime_ns, status.st_size
