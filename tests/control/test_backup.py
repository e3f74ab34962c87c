"""A home saved while jobs run and objects come and go, and a service that goes on from the copy elsewhere."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from sarto.configuration import Limits
from sarto.control.context import Control
from sarto.control.models import registry
from sarto.control.runs.supervisor import Supervisor
from sarto.errors import AlreadyExists, FailedPrecondition, NotFound
from sarto.storage import backup
from tests.control.homes import create, make_control, member, open_control, read, wait_for_end, wait_until

Supervise = Callable[[Control], Supervisor]
LIMITS = Limits(threads=1, concurrent_jobs=3, concurrent_runs=3, lease_seconds=2.0, reserve_bytes=0)


def test_a_home_saved_under_load_goes_on_elsewhere(tmp_path: Path, supervise: Supervise) -> None:
    control = make_control(tmp_path / "home", limits=LIMITS)
    project = member(control).project
    over = threading.Event()

    def churn() -> None:
        number = 0
        while not over.is_set():
            number += 1
            control.buckets.put_bytes("data", f"note-{number % 7}", f"version {number}".encode() * 1000)
            if number % 3 == 0:
                control.buckets.delete("data", f"note-{number % 7}")

    churning = threading.Thread(target=churn, daemon=True)
    churning.start()
    supervisor = supervise(control)
    ended = wait_for_end(control, create(control))
    going = [create(control, "slow", spec={"hyperParameters": {"epochCount": 1}}) for _ in range(2)]
    waiting = [create(control) for _ in range(3)]
    wait_until(lambda: read(control, going[0]).get("tuningJobState") == "TUNING_JOB_STATE_TUNING")
    backup.save(control.home, tmp_path / "saved")
    over.set()
    churning.join()
    supervisor.stop()
    control.database.close()
    shutil.move(control.home, tmp_path / "lost")
    (tmp_path / "lost" / "sarto.db").unlink()

    backup.restore(tmp_path / "saved", tmp_path / "elsewhere")
    shutil.copytree(tmp_path / "lost" / "models", tmp_path / "elsewhere" / "models", dirs_exist_ok=True)
    again = open_control(tmp_path / "elsewhere", limits=LIMITS)
    again_supervisor = supervise(again)
    for name in [*going, *waiting]:
        job = wait_for_end(again, name)
        assert job["state"] == "JOB_STATE_SUCCEEDED", job
    deployed = registry.resolve(again, member(again), ended["tunedModel"]["endpoint"])
    assert (tmp_path / "elsewhere" / deployed.adapter_folder / "adapter_model.safetensors").exists()
    for found in again.buckets.list("data", project=project).objects:
        assert again.buckets.path(found).stat().st_size == found.size
    again_supervisor.stop()
    again.database.close()


def test_a_backup_that_was_changed_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    control = make_control(tmp_path / "home")
    control.database.close()
    backup.save(control.home, tmp_path / "saved")
    one = next((tmp_path / "saved" / "objects").rglob("*/*"))
    one.chmod(0o600)
    one.write_bytes(b"x" + one.read_bytes()[1:])
    with pytest.raises(FailedPrecondition, match=one.name):
        backup.restore(tmp_path / "saved", tmp_path / "new")
    one.unlink()
    with pytest.raises(FailedPrecondition, match="lacks"):
        backup.restore(tmp_path / "saved", tmp_path / "new")
    assert {path.name for path in tmp_path.iterdir()} == {"home", "saved"}


def test_backups_overwrite_nothing(tmp_path: Path) -> None:
    control = make_control(tmp_path / "home")
    control.database.close()
    backup.save(control.home, tmp_path / "saved")
    with pytest.raises(AlreadyExists):
        backup.save(control.home, tmp_path / "saved")
    with pytest.raises(AlreadyExists):
        backup.restore(tmp_path / "saved", control.home)
    with pytest.raises(NotFound):
        backup.restore(tmp_path / "home", tmp_path / "new")
    with pytest.raises(NotFound):
        backup.save(tmp_path / "saved" / "objects", tmp_path / "other")
