"""A test that leaves a thread or a process behind fails its session, which ends all the same."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.structure.sources import ROOT

CONFTEST = """
from tests.leftovers import Leftovers
def pytest_configure(config):
    config.pluginmanager.register(Leftovers(), "leftovers")
"""
THREAD = """
import threading
def test_thread():
    threading.Thread(target=threading.Event().wait, name="waits for ever").start()
"""
PROCESS = """
import subprocess
def test_process():
    global child
    child = subprocess.Popen(["sleep", "20"])
"""
NOTHING = """
import threading, subprocess
from concurrent.futures import ThreadPoolExecutor
def test_nothing():
    threading.Thread(target=threading.Event().wait, daemon=True).start()
    ThreadPoolExecutor().submit(int)
    subprocess.run(["true"])
"""


def session(folder: Path, test: str, *options: str) -> tuple[int, str, float]:
    (folder / "conftest.py").write_text(CONFTEST)
    (folder / "test_it.py").write_text(test)
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", f"--rootdir={folder}", "-c", "/dev/null"]
    began = time.monotonic()
    done = subprocess.run([*command, *options, str(folder)], cwd=ROOT, capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout + done.stderr, time.monotonic() - began


@pytest.mark.parametrize("options", [(), ("-n", "1")], ids=["alone", "with workers"])
def test_a_thread_that_goes_on_fails_the_session_and_does_not_hold_it(tmp_path: Path, options: tuple[str, ...]) -> None:
    report = tmp_path / "report.xml"
    code, words, seconds = session(tmp_path, THREAD, f"--junitxml={report}", *options)
    assert code == 1
    assert "thread waits for ever" in words and "1 passed" in words
    assert 'tests="1"' in report.read_text()
    assert seconds < 40


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds children in /proc")
def test_a_process_that_goes_on_fails_the_session(tmp_path: Path) -> None:
    code, words, _ = session(tmp_path, PROCESS)
    assert code == 1 and "sleep 20" in words


def test_what_ends_with_its_session_is_no_leftover(tmp_path: Path) -> None:
    code, words, _ = session(tmp_path, NOTHING)
    assert code == 0, words
