"""The memory that a machine or its control group has left."""

from __future__ import annotations

from pathlib import Path

from sarto.system.memory import available_memory_bytes, machine_memory_bytes


def test_free_memory_is_the_containers_where_that_is_less(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 9 kB\nMemAvailable: 1000 kB\n")
    assert available_memory_bytes(meminfo, tmp_path) == 1_024_000
    (tmp_path / "memory.max").write_text("max")
    (tmp_path / "memory.current").write_text("100")
    assert available_memory_bytes(meminfo, tmp_path) == 1_024_000
    (tmp_path / "memory.max").write_text("300100\n")
    assert available_memory_bytes(meminfo, tmp_path) == 300_000


def test_a_system_that_does_not_report_its_memory_has_no_number(tmp_path: Path) -> None:
    assert available_memory_bytes(tmp_path / "meminfo", tmp_path) is None


def test_the_memory_of_a_machine_is_its_control_groups_where_that_is_less(tmp_path: Path) -> None:
    whole = machine_memory_bytes(tmp_path)
    (tmp_path / "memory.max").write_text("max")
    assert machine_memory_bytes(tmp_path) == whole > 1 << 20
    (tmp_path / "memory.max").write_text("1000000\n")
    assert machine_memory_bytes(tmp_path) == 1_000_000
