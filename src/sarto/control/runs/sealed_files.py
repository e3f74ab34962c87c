"""Reads files of a job in the home folder, whether or not they are encrypted under a customer key."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

from sarto.control.context import Control
from sarto.storage.encryption import envelope


def job_path(job: str, name: str) -> str:
    """The path to which an encrypted file of a job is bound."""
    return f"runs/{job}/{name}"


def read(control: Control, job: str, path: Path) -> bytes:
    """A file in a job's folder, decrypted if needed. Raises its key's FailedPrecondition."""
    with open_file(control, job, path) as file:
        return file.read()


def open_file(control: Control, job: str, path: Path) -> BinaryIO:
    """The same for a large file; the caller closes it."""
    if not envelope.is_sealed(path):
        return path.open("rb")
    return control.sealer.open(path, job_path(job, str(path.relative_to(control.job_folder(job)))))


def adapter(control: Control, name: str) -> Path:
    """The folder with the plain files of an adapter, by its name in rows. Raises FailedPrecondition as its key does,
    NotFound."""
    folder = control.adapter_folder(name)
    return control.sealer.opened.open(folder) if key_of(control, name) else folder


def key_of(control: Control, name: str) -> str:
    """The key of an adapter; empty for a plain one, and for a missing one."""
    try:
        source = next(control.adapter_folder(name).iterdir()) if name else None
        return envelope.key_of(source, source.name) if source and envelope.is_sealed(source) else ""
    except (FileNotFoundError, StopIteration):
        return ""  # the reader reports it
