"""What a run writes to survive and to give away: resume points and exported adapters. Both appear whole or not at all.

A resume point is one safetensors file with adapter, optimiser and, in its header, the cursor and what was exported so
far. The order of the examples is a function of the seed and the step, so there is no other random state to keep.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sarto.engine.lora import CONFIG_FILE, WEIGHTS_FILE, LoraAdapter, read_adapter, write_adapter
from sarto.engine.tuning.supervised import MemoryPlan
from sarto.errors import Internal
from sarto.failpoints import around
from sarto.schema.runs import CheckpointRecord, EvalMetrics

RESUME_FILE = "resume.safetensors"


class Cursor(BaseModel):
    """The header of a resume point."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    fingerprint: str
    """Of everything that decides the numbers: another one makes the point useless."""
    completed: int
    memory: MemoryPlan
    """How steps were cut; cutting them otherwise would round sums otherwise."""
    history_file: str
    history_bytes: int
    checkpoints: list[CheckpointRecord]
    evaluations: list[EvalMetrics]


@dataclass(frozen=True)
class ResumePoint:
    cursor: Cursor
    state: dict[str, Tensor]


def save_resume_point(folder: Path, cursor: Cursor, state: dict[str, Tensor]) -> None:
    """Raises Internal, and leaves the point there was, for one that is not read back as it was written."""
    partial = folder / f".{RESUME_FILE}.{os.getpid()}"
    words = cursor.model_dump_json()
    save_file(state, partial, metadata={"cursor": words, "digest": _digest(words, state)})
    _flush(partial)
    _read(partial)
    with around("rename"):
        partial.replace(folder / RESUME_FILE)


def load_resume_point(folder: Path) -> ResumePoint | None:
    """None where there is none. Raises Internal for a file that cannot be read."""
    path = folder / RESUME_FILE
    return _read(path) if path.exists() else None


def _read(path: Path) -> ResumePoint:
    try:
        with safe_open(path, "pt") as file:
            header = file.metadata()
            state = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
            cursor = Cursor.model_validate_json(header["cursor"])
            if header["digest"] != _digest(header["cursor"], state):
                raise Internal("the resume point cannot be read: its bytes have changed")
            return ResumePoint(cursor, state)
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise Internal(f"the resume point cannot be read: {error}") from None


def export(adapter: LoraAdapter, folder: Path, base_name: str) -> dict[str, str]:
    """Write a PEFT adapter, read it back, compare; file name → sha256. Raises if a value is not finite or differs."""
    partial = folder.with_name(f".{folder.name}.partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    write_adapter(adapter, partial, base_name)
    again = read_adapter(partial)
    for name, tensor in adapter.named_tensors():
        if not torch.equal(again.tensors[name], tensor.detach().cpu()):
            raise Internal(f"checkpoint {folder.name}: {name} was not read back as it was written")
    for name in (WEIGHTS_FILE, CONFIG_FILE):
        _flush(partial / name)
    shutil.rmtree(folder, ignore_errors=True)
    with around("rename"):
        partial.rename(folder)
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in (WEIGHTS_FILE, CONFIG_FILE)}


def link_folder(source: Path, target: Path) -> None:
    """The same files under another name; copied where the file system cannot link."""
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for path in source.iterdir():
        try:
            os.link(path, target / path.name)
        except OSError:
            shutil.copyfile(path, target / path.name)


def fingerprint(facts: dict[str, object]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _digest(cursor: str, state: dict[str, Tensor]) -> str:
    """Of all that a resume point holds: a bit that flipped on the disk must not become a model."""
    found = hashlib.sha256(cursor.encode())
    for name, tensor in sorted(state.items()):
        found.update(name.encode())
        found.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return found.hexdigest()


def _flush(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
