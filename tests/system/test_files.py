"""A file is written whole, with its permissions, whatever a killed process left behind."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from sarto.system.files import create_whole, leftovers, whole_file, whole_folder, write_whole

WRITER = """
import sys
from pathlib import Path
from sarto.system.files import write_whole
for _ in range(200):
    write_whole(Path(sys.argv[1]), sys.argv[2].encode() * 1000)
"""
KILLED = """
import sys
from pathlib import Path
from sarto.system import failpoints
from sarto.system.files import write_whole
failpoints.arm(failpoints.dying_at("rename outside before"))
write_whole(Path(sys.argv[1]), b"half")
"""


def test_a_file_has_its_permissions_also_after_a_killed_writer(tmp_path: Path) -> None:
    path = tmp_path / "key"
    killed = subprocess.run([sys.executable, "-c", KILLED, str(path)], check=False)
    assert killed.returncode == -signal.SIGKILL and not path.exists()
    (left,) = leftovers(path)
    left.chmod(0o666)
    write_whole(path, b"whole", 0o600)
    assert path.read_bytes() == b"whole"
    assert path.stat().st_mode & 0o777 == 0o600
    left.unlink()
    assert [path.name for path in tmp_path.iterdir()] == ["key"]


def test_processes_that_write_one_file_at_once_do_not_disturb_one_another(tmp_path: Path) -> None:
    path = tmp_path / "address"
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, str(path), word]) for word in ("a", "b")]
    assert [writer.wait(60) for writer in writers] == [0, 0]
    assert path.read_bytes() in (b"a" * 1000, b"b" * 1000)
    assert [path.name for path in tmp_path.iterdir()] == ["address"]


def test_threads_that_write_one_file_at_once_do_not_disturb_one_another(tmp_path: Path) -> None:
    path, faults = tmp_path / "facts", list[OSError]()

    def write(word: bytes) -> None:
        try:
            for _ in range(200):
                write_whole(path, word * 1000, durable=False)
        except OSError as error:
            faults.append(error)

    threads = [threading.Thread(target=write, args=(word,), daemon=True) for word in (b"a", b"b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert faults == [] and path.read_bytes() in (b"a" * 1000, b"b" * 1000)


def test_a_write_that_fails_leaves_the_file_as_it_was_and_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "facts"
    write_whole(path, b"before")
    with pytest.raises(ValueError, match="no more"), whole_file(path) as file:
        file.write(b"half")
        raise ValueError("no more")
    assert path.read_bytes() == b"before"
    assert [path.name for path in tmp_path.iterdir()] == ["facts"]


def test_a_file_is_created_once(tmp_path: Path) -> None:
    path = tmp_path / "key"
    assert create_whole(path, b"first", 0o600) and not create_whole(path, b"second")
    assert path.read_bytes() == b"first" and path.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["key"]


def test_a_folder_appears_complete_and_one_that_fails_leaves_nothing(tmp_path: Path) -> None:
    target = tmp_path / "above" / "adapter"
    with whole_folder(target, 0o700) as part:
        (part / "weights").write_bytes(b"x")
        assert not target.exists()
    assert (target / "weights").read_bytes() == b"x" and target.stat().st_mode & 0o777 == 0o700
    with pytest.raises(ValueError, match="no more"), whole_folder(tmp_path / "other") as part:
        (part / "weights").write_bytes(b"half")
        raise ValueError("no more")
    with pytest.raises(OSError, match="not empty"), whole_folder(target) as part:
        (part / "weights").write_bytes(b"y")
    assert [path.name for path in tmp_path.iterdir()] == ["above"]
    assert (target / "weights").read_bytes() == b"x" and [path.name for path in target.parent.iterdir()] == ["adapter"]
