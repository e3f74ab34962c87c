"""`sarto doctor`, as someone types it."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from sarto.control.access import account_store, authorization, projects
from sarto.control.access.roles import SARTO_ADMIN
from tests.control.homes import make_control

MAIN = "from sarto.cli import main; main()"


def doctor(home: Path, *options: str, **environment: str) -> tuple[int, dict[str, Any]]:
    command = [sys.executable, "-c", MAIN, "doctor", "--json", "--home", str(home), *options]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, {one["name"]: one for one in json.loads(done.stdout)}


def test_a_healthy_home_is_all_well(tmp_path: Path) -> None:
    home = tmp_path / "home"
    make_control(home).database.close()
    home.chmod(0o700)
    code, found = doctor(home, SARTO_MODELS_FOLDER=str(home / "models"), SARTO_PORT="0", SARTO_ALLOW_ROOT="true")
    confinement, user = found.pop("confinement"), found.pop("user")  # these depend on the machine and on who tests
    assert confinement["state"] == "ok" or ("not fully confined" in confinement["found"] and confinement["advice"])
    assert user["state"] in ("ok", "warning")
    assert code == 0 and {one["state"] for one in found.values()} == {"ok"}, found
    assert set(found) >= {"database", "disk", "memory", "threads", "base weights", "port", "clock"}


def test_it_says_who_administers_the_service_and_what_projects_could_reach(tmp_path: Path) -> None:
    control = make_control(tmp_path)
    database = control.database
    account_store.open_home(database, tmp_path, "demo", "http://127.0.0.1:1")
    code, found = doctor(tmp_path, SARTO_MODELS_FOLDER=str(tmp_path / "models"), SARTO_PORT="0")
    assert found["administrators"]["found"] == "1 with 1 keys, 1 of them without an end"
    demo = projects.find(database, "demo")
    assert demo is not None
    with database.transaction() as connection:
        account_store.create(connection, demo, "other-admin", SARTO_ADMIN, 0.0)
        authorization.bind(connection, f"projects/{demo.number}", "roles/owner", "user:ada@example.com")
    _, found = doctor(tmp_path)
    assert found["administrators"]["state"] == "warning"
    told = "other-admin@demo.iam.gserviceaccount.com in a project that user:ada@example.com owns"
    assert found["administrators"]["found"] == told
    with database.transaction() as connection:
        squatter = projects.Project("gcp-sa-vertex-tune", "2", 0.0)
        account_store.create(connection, squatter, f"service-{demo.number}", "", 0.0)
    database.close()
    code, found = doctor(tmp_path)
    assert code == 1 and demo.agent in found["administrators"]["found"]


def test_each_fault_is_named_with_what_to_do(tmp_path: Path) -> None:
    home = tmp_path / "home"
    control = make_control(home)
    with control.database.transaction() as connection:
        connection.exec_driver_sql("update alembic_version set version_num = '9999'")
    control.database.close()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        environment = {"SARTO_MODELS_FOLDER": str(tmp_path), "SARTO_PORT": str(taken.getsockname()[1])}
        code, found = doctor(home, **environment, SARTO_THREADS="999")
    assert code == 1
    assert "newer" in found["database"]["found"]
    assert "in use" in found["port"]["found"]
    assert "sarto models pull" in found["base weights"]["advice"]
    assert found["threads"]["state"] == "warning" and found["threads"]["advice"]
