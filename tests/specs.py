"""Specs of tests, whose files are anywhere on this machine: the whole disk is one place."""

from __future__ import annotations

from pathlib import Path

from sarto.contract.places import Places
from sarto.contract.programs import Spec
from sarto.control.executors.executor import Launch

DISK = Places({"disk": Path("/")})


def write_spec(spec: Spec, file: Path) -> list[str]:
    """Write a spec that has paths, with names in their place; gives the arguments of its program."""
    file.write_text(DISK.named(spec).model_dump_json())
    return arguments(file)


def arguments(spec_file: Path) -> list[str]:
    return [str(spec_file), *DISK.arguments()]


def launch(handle: str, spec_file: Path, log: Path) -> Launch:
    return Launch(handle, DISK.name(spec_file), DISK, log)
