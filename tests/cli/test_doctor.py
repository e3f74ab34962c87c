"""`sarto doctor`, as someone types it."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

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
    code, found = doctor(home, SARTO_MODELS_FOLDER=str(home / "models"), SARTO_PORT="0")
    network = found.pop("runs' network")  # whether it can be taken from runs depends on the machine, and it says so
    assert network["state"] == "ok" or ("runs keep it" in network["found"] and network["advice"])
    assert code == 0 and {one["state"] for one in found.values()} == {"ok"}, found
    assert set(found) >= {"database", "disk", "memory", "threads", "base weights", "port", "clock"}


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
