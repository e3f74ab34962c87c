"""A disk that is full, in earnest: a home on a small file system of its own."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from sarto.control import events
from sarto.control.supervisor import Supervisor
from tests.control.homes import LIMITS, create, make_control, member, read, stand_in_executor, wait_for_end, wait_until

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
    limits = replace(LIMITS, reserve_bytes=4 << 20, room_seconds=0.2)
    control = make_control(small_disk / "home", limits=limits)
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
            told = events.list_(control, member(control), name)[0]
            assert [event["kind"] for event in told] == ["created", "waiting"] and "MB are free" in told[-1]["message"]
        ballast.unlink()
        assert wait_for_end(control, name)["state"] == "JOB_STATE_SUCCEEDED"
        with control.database.reading() as connection:
            assert connection.exec_driver_sql("pragma integrity_check").scalar() == "ok"
    finally:
        supervisor.stop()
        control.database.close()
