"""An executor whose runs have a disk of their own: nothing that control has is there but what was copied in, and
nothing comes back but what is fetched. It stands for an executor on another machine without a shared disk."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from sarto.contract.places import Places
from sarto.contract.programs import SPECS
from sarto.contract.run_folder import RESUME_FILE
from sarto.control.executors.executor import RUN, Launch
from sarto.control.executors.local import LocalExecutor, LocalRun
from sarto.system.confinement import confined


class OtherDiskExecutor:
    """Each run has a folder below `root`, in which every place of its spec is a folder."""

    def __init__(
        self, root: Path, environment: Mapping[str, str], program: Sequence[str] | None = None, kind: str = RUN
    ) -> None:
        self._root, self._kind = root, kind
        self._there = LocalExecutor(environment, program or confined(kind))

    def start(self, launch: Launch) -> OtherDiskRun:
        there = Places.under(self._root / launch.handle)
        files = SPECS[self._kind].model_validate_json(launch.spec_file.read_bytes()).files()
        for folder in there.folders.values():
            folder.mkdir(parents=True)
        for name in [*files.read, *files.write, launch.spec]:
            copy(launch.places.path(name), there.path(name))
        for name in files.scratch:
            there.path(name).mkdir(parents=True, exist_ok=True)
        log = self._root / f"{launch.handle}.log"
        run = self._there.start(Launch(launch.handle, launch.spec, there, log))
        return OtherDiskRun(run, launch, there, log)


class OtherDiskRun:
    def __init__(self, run: LocalRun, launch: Launch, there: Places, log: Path) -> None:
        self._run, self._launch, self._there, self._log = run, launch, there, log

    def poll(self) -> int | None:
        code = self._run.poll()
        if code is not None:
            shutil.copyfile(self._log, self._launch.log)
        return code

    def stop(self, grace_seconds: float) -> None:
        self._run.stop(grace_seconds)

    def lines(self, name: str) -> list[bytes]:
        return self._run.lines(name)

    def send(self, name: str, line: bytes) -> None:
        self._run.send(name, line)

    def fetch(self, name: str) -> None:
        copy(self._there.path(name), self._launch.places.path(name))


def copy(source: Path, target: Path) -> None:
    """What changed in a file or folder. Half-written files have names with a dot; each file appears whole. The resume
    point is taken first and put down last: all that it refers to was written before it."""
    if source.is_file():
        _copy_file(source, target)
        return
    if source.is_dir():
        target.mkdir(parents=True, exist_ok=True)
    point, taken = source / RESUME_FILE, source / f".{RESUME_FILE}.taken"
    taken.unlink(missing_ok=True)
    if point.exists():
        os.link(point, taken)
    for path in _files(source):
        if path != point:
            _copy_file(path, target / path.relative_to(source))
    if taken.exists():
        _copy_file(taken, target / RESUME_FILE)
        taken.unlink()


def _files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        if not any(part.startswith(".") for part in path.relative_to(folder).parts) and path.is_file():
            yield path


def _copy_file(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.part")
    try:
        changed, size = source.stat().st_mtime_ns, source.stat().st_size
        if target.exists() and (target.stat().st_mtime_ns, target.stat().st_size) == (changed, size):
            return
        shutil.copyfile(source, part)
    except FileNotFoundError:
        return  # the run has replaced or removed it
    os.utime(part, ns=(changed, changed))
    part.replace(target)
