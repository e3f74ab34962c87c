"""A disk that is full, in earnest: a home on a small file system of its own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from sarto.contract.export_run import ExportResult, ExportSpec
from sarto.control.context import Pauses
from sarto.control.exports.export_work import ExportWork
from sarto.control.jobs import events
from sarto.control.runs.supervisor import Supervisor
from sarto.errors import ResourceExhausted
from tests.control.homes import (
    LIMITS,
    create,
    export_run,
    make_control,
    member,
    read,
    stand_in_executor,
    wait_for_end,
    wait_until,
)
from tests.serving.making import make_adapter
from tests.specs import write_spec
from tests.tiny import make_tiny_base

SIZE_BYTES = 24 << 20


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={SIZE_BYTES}", "sarto-test", str(place)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount here")
    if done.returncode:
        pytest.skip(f"mounting a small file system is not allowed here: {done.stderr.strip()}")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.parametrize("when", ["before", "while it runs"])
def test_a_job_waits_while_the_disk_is_full_and_goes_on_when_there_is_room(small_disk: Path, when: str) -> None:
    made = make_control(small_disk / "home", limits=replace(LIMITS, reserve_bytes=4 << 20))
    control = replace(made, pauses=Pauses(room_seconds=0.2))
    supervisor = Supervisor(control, stand_in_executor())
    name = create(control, "slow" if when != "before" else "train", spec={"hyperParameters": {"epochCount": 1}})
    ballast = small_disk / "ballast"

    def fill() -> None:
        with ballast.open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(4096))
            except OSError:
                pass
        with ballast.open("r+b") as file:  # leave the database a little, and too little for checkpoints' copies
            file.truncate(max(0, ballast.stat().st_size - (1 << 20)))

    if when == "before":
        fill()
    supervisor.start()
    try:
        if when != "before":
            wait_until(lambda: read(control, name).get("tuningJobState") == "TUNING_JOB_STATE_TUNING")
            fill()
        else:
            wait_until(lambda: read(control, name).get("tuningJobState") == "TUNING_JOB_STATE_WAITING_FOR_CAPACITY")
            told = events.list_events(control, member(control), name)[0]
            assert [event["kind"] for event in told] == ["created", "waiting"] and "MB are free" in told[-1]["message"]
        ballast.unlink()
        assert wait_for_end(control, name)["state"] == "JOB_STATE_SUCCEEDED"
        with control.database.reading() as connection:
            assert connection.exec_driver_sql("pragma integrity_check").scalar() == "ok"
    finally:
        supervisor.stop()
        control.database.close()


def fill_up(ballast: Path, leave_bytes: int) -> None:
    with ballast.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass
    with ballast.open("r+b") as file:
        file.truncate(max(0, ballast.stat().st_size - leave_bytes))


def test_an_exporter_on_a_full_disk_says_so_and_leaves_no_files(small_disk: Path, tmp_path: Path) -> None:
    base = make_tiny_base(tmp_path / "base")
    adapter = make_adapter(base, tmp_path / "adapter")
    folder = small_disk / "export"
    folder.mkdir()
    spec = ExportSpec(
        model="m", title="m", format="merged-safetensors", base=base, adapter_folder=adapter.folder,
        folder=str(folder), held_out=str(folder / "held_out.jsonl"), held_out_uri="", card={}, license="", threads=1,
    )  # fmt: skip
    program = [sys.executable, "-m", "sarto.engine.programs.export", *write_spec(spec, folder / "spec.json")]
    (folder / "held_out.jsonl").write_bytes(b"")
    fill_up(small_disk / "ballast", 40_000)
    with subprocess.Popen(program, stdin=subprocess.PIPE) as child:
        assert child.wait(60) == 0
    result = ExportResult.model_validate_json((folder / "result.json").read_bytes())
    assert result.error is not None
    assert result.error["code"] == 8 and "is full" in result.error["message"]
    assert not (folder / "files").exists()


def test_an_export_that_no_longer_fits_into_its_bucket_leaves_none_of_its_files_there(
    small_disk: Path, tmp_path: Path
) -> None:
    control = make_control(small_disk / "home")
    project = member(control).project
    folder = tmp_path / "export"
    (folder / "files").mkdir(parents=True)
    (folder / "files" / "a.json").write_bytes(b"{}")
    (folder / "files" / "b.safetensors").write_bytes(bytes(8 << 20))
    fill_up(small_disk / "ballast", 2 << 20)
    run = export_run("exports/m")
    found = ExportResult(files=["a.json", "b.safetensors"])
    result = found.model_dump_json().encode()
    with (
        pytest.raises(ResourceExhausted, match="is full"),
        ExportWork(control, []).publish(project, run, folder, result),
    ):
        pytest.fail("the files were received")
    assert [row.name for row in control.buckets.list("data", "exports/").objects] == []
