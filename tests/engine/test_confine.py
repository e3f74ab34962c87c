"""What a run has given up before it reads data."""

from __future__ import annotations

import ctypes
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="namespaces are Linux's")

PR_CAPBSET_DROP, CAP_SYS_ADMIN = 24, 21
LIBRARY = ctypes.CDLL(None)


def drop_right_to_make_namespaces() -> None:
    LIBRARY.prctl(PR_CAPBSET_DROP, CAP_SYS_ADMIN, 0, 0, 0)


PROGRAM = """
import ctypes, os, resource, socket, sys
assert resource.getrlimit(resource.RLIMIT_CORE) == (0, 0)
assert resource.getrlimit(resource.RLIMIT_NOFILE)[1] <= 4096
assert ctypes.CDLL(None).prctl(3, 0, 0, 0, 0) == 0, 'dumpable'
assert os.getuid() == int(sys.argv[1])
for address in (('127.0.0.1', int(sys.argv[2])), ('192.0.2.1', 80)):
    try:
        socket.create_connection(address, timeout=2)
    except OSError:
        continue
    sys.exit('reached ' + address[0])
print('confined')
"""


@pytest.mark.parametrize("is_privileged", [True, False])
def test_a_run_reaches_nobody_and_leaves_no_core(is_privileged: bool, tmp_path: Path) -> None:
    (tmp_path / "probing.py").write_text(PROGRAM)
    confine = [sys.executable, "-m", "sarto.engine.confine"]
    how: dict[str, Any] = {"env": os.environ | {"PYTHONPATH": str(tmp_path)}, "capture_output": True, "text": True}
    if not is_privileged:
        how["preexec_fn"] = drop_right_to_make_namespaces
    probe = subprocess.run(confine, **how)
    if probe.returncode:
        pytest.skip(f"this machine keeps the network: {probe.stderr.strip()}")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        arguments = (str(os.getuid()), str(listener.getsockname()[1]))
        done = subprocess.run([*confine, "probing", *arguments], **how)
    assert done.stdout.strip() == "confined", done.stderr


def test_a_run_takes_no_more_memory_than_it_is_given(tmp_path: Path) -> None:
    (tmp_path / "greedy.py").write_text("import sys; print(len(bytearray(int(sys.argv[1]))))")
    command = [sys.executable, "-m", "sarto.engine.confine", f"--data-bytes={400_000_000}", "greedy"]
    how: dict[str, Any] = {"env": os.environ | {"PYTHONPATH": str(tmp_path)}, "capture_output": True, "text": True}
    assert subprocess.run([*command, "1000000"], **how).stdout.strip() == "1000000"
    refused = subprocess.run([*command, "500000000"], **how)
    assert refused.returncode == 1 and "MemoryError" in refused.stderr
