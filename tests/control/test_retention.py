"""What is collected while the service runs, and what is not, however old it looks."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from sarto.control import retention
from sarto.control.context import Control
from sarto.control.jobs import tuning_jobs
from sarto.control.jobs.states import RUNNING, advance
from sarto.control.models import registry
from sarto.control.runs.supervisor import Supervisor
from sarto.control.scheduling import leases
from sarto.names import parse_resource
from sarto.storage.database.tables import tuning_job
from tests.control.homes import create, member, read, wait_for_end, wait_until

Supervise = Callable[[Control], Supervisor]
DAY = 86_400.0


def age(path: Path, seconds: float) -> None:
    """Make it, and all in it, look so old."""
    for one in [path, *path.rglob("*")]:
        if not one.is_symlink():
            os.utime(one, (time.time() - seconds, time.time() - seconds))


def end_earlier(control: Control, seconds: float) -> None:
    """Ended jobs ended so much earlier."""
    control.database.now = lambda _: time.time() + seconds  # type: ignore[method-assign]


def test_an_ended_job_loses_resume_points_first_and_after_its_days_the_rest_but_never_its_model(
    any_control: Control, supervise: Supervise
) -> None:
    control = any_control
    supervisor = supervise(control)
    name = create(control)
    job = wait_for_end(control, name)
    supervisor.stop()
    folder = control.job_folder(name.id)
    deployed = registry.resolve(control, member(control), job["tunedModel"]["endpoint"])
    kept = {path: path.read_bytes() for path in control.adapter_folder(deployed.adapter_folder).iterdir()}
    age(control.home / "adapters", 90 * DAY)
    with control.database.transaction() as connection:  # adapters are kept by their digest
        connection.exec_driver_sql("update checkpoint set adapter_folder = '/before' || adapter_folder")
    assert +retention.collect(control) == {"holds": 1}, "it has only just ended"
    end_earlier(control, 3600.0)
    assert (folder / "1" / "checkpoints").exists() and (folder / "resume" / "step").exists()
    retention.collect(control)
    assert not (folder / "1" / "checkpoints").exists() and not (folder / "resume" / "step").exists()
    assert (folder / "1" / "result.json").exists() and (folder / "data" / "training.jsonl").exists()
    end_earlier(control, 31 * DAY)
    forever = replace(control, limits=replace(control.limits, keep_run_days=0.0))
    retention.collect(forever)
    assert (folder / "1" / "result.json").exists()
    retention.collect(control)
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*")} == {"data", "data/training.json"}
    assert {path: path.read_bytes() for path in control.adapter_folder(deployed.adapter_folder).iterdir()} == kept
    assert len(control.buckets.list("sarto-demo-models").objects) == 6
    assert retention.collect(control).total() == 0, "nothing is left to collect"


def test_a_running_job_keeps_all_that_its_epoch_reads_and_dead_epochs_lose_their_checkpoints(
    control: Control, supervise: Supervise
) -> None:
    name = create(control)
    for epoch in (1, 2):
        lease = leases.claim(control.database, f"owner-{epoch}", control.limits)
        assert lease is not None and lease.epoch == epoch
        if epoch == 1:
            with control.database.transaction() as connection:
                advance(connection, leases.hold(connection, lease), RUNNING, control.database.now(connection))
                connection.execute(tuning_job.update().values(lease_until=1.0))
    folder = control.job_folder(name.id)
    for place in ("1/checkpoints/2", "2/checkpoints/2", "resume/checkpoints/2"):
        (folder / place).mkdir(parents=True)
        (folder / place / "adapter_model.safetensors").write_bytes(b"weights")
    (folder / "1" / "log.txt").write_text("what it said")
    age(folder, 90 * DAY)
    end_earlier(control, 0.5)
    assert retention.collect(control)["run_folders"] == 1
    left = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert left == {
        "1/log.txt", "2/checkpoints/2/adapter_model.safetensors", "resume/checkpoints/2/adapter_model.safetensors",
    }  # fmt: skip


def test_collecting_all_the_time_disturbs_no_job(control: Control, supervise: Supervise) -> None:
    wide = replace(control, limits=replace(control.limits, concurrent_jobs=3, concurrent_runs=3))
    supervise(wide)
    names = [create(control, data) for data in ("train", "die-once", "slow")]

    def collected() -> bool:
        retention.collect(control)
        return all(read(control, name)["state"] == "JOB_STATE_SUCCEEDED" for name in names)

    wait_until(collected, 60.0)
    for name in names:
        for checkpoint in read(control, name)["tunedModel"]["checkpoints"]:
            folder = control.adapter_folder(
                registry.resolve(control, member(control), checkpoint["endpoint"]).adapter_folder
            )
            assert (folder / "adapter_model.safetensors").exists()


def test_what_no_row_names_goes_a_day_later(control: Control, supervise: Supervise) -> None:
    supervise(control)
    name = create(control)
    job = wait_for_end(control, name)
    planted = [
        control.home / "adapters" / ("a" * 64),
        control.home / "adapters" / ".half.1",
        control.home / "runs" / "1234567890123456789",
        control.home / "runs" / "export-1234567890123456789",
        control.home / "cache" / "tokens" / "old",
    ]
    for folder in planted:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "file").write_bytes(b"x")
    assert +retention.collect(control) == {"holds": 1}
    for folder in planted[:-1]:
        age(folder, 2 * DAY)
    age(planted[-1], 31 * DAY)
    retention.collect(control)
    assert [folder for folder in planted if folder.exists()] == []
    assert control.job_folder(name.id).exists()
    log = control.home / "logs" / "exports.log"
    log.parent.mkdir(exist_ok=True)
    log.write_bytes(b"line\n" * 3_000_000)
    assert retention.collect(control)["logs"] == 1 and log.stat().st_size == 0
    assert registry.get(control, member(control), parse_resource(job["tunedModel"]["model"], "models", versioned=True))


def test_checkpoints_whose_deletion_was_cut_off_are_collected_and_a_models_are_not(
    control: Control, supervise: Supervise
) -> None:
    supervise(control)
    kept, name = create(control), create(control, "slow")
    wait_for_end(control, kept)
    wait_until(lambda: "tunedModel" in read(control, name))
    tuning_jobs.cancel(control, member(control), name)
    wait_for_end(control, name)
    tuning_jobs.delete(control, member(control), kept)  # its model stays
    with control.database.transaction() as connection:  # as if the deletion had died behind its commit
        for table in ("tuning_job", "checkpoint"):
            column = "id" if table == "tuning_job" else "job"
            connection.exec_driver_sql(f"delete from {table} where {column} = '{name.id}'")
    shutil.rmtree(control.job_folder(name.id))
    found = {one.name.split("/")[1] for one in control.buckets.list("sarto-demo-models").objects}
    assert found == {kept.id, name.id}
    retention.collect(control)
    end_earlier(control, 2 * DAY)
    assert retention.collect(control)["artifacts"] == 1
    assert {one.name.split("/")[1] for one in control.buckets.list("sarto-demo-models").objects} == {kept.id}
