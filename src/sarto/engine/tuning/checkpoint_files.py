"""Resume points and exported adapters of a run. Both are written to a temporary path and renamed.

A resume point is one safetensors file with adapter, optimiser and, in its header, the position and the exported
checkpoints. The order of the examples is a function of the seed and the step, so there is no other random state to
store.
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
from torch import Tensor

from sarto.contract.common import BaseWeights
from sarto.contract.run_folder import RESUME_FILE
from sarto.contract.tuning_run import CheckpointRecord, EvalMetrics
from sarto.engine.models.full_weights import FullWeights
from sarto.engine.models.lora import LoraAdapter
from sarto.engine.models.trainable import Trainable
from sarto.engine.tuning.packing import MemoryPlan
from sarto.engine.weights.full_model import file_digest, write_model
from sarto.engine.weights.peft import read_adapter, write_adapter
from sarto.engine.weights.tensor_file import StoredTensors, content, save_file
from sarto.errors import Internal
from sarto.system.files import flush, whole_folder, whole_path


class ResumeHeader(BaseModel):
    """The header of a resume point."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    fingerprint: str
    """Fingerprint of everything that decides the numbers: with another one the point is not used."""
    completed: int
    memory: MemoryPlan
    """The memory plan of the steps; another plan would round sums differently."""
    history_file: str
    history_bytes: int
    checkpoints: list[CheckpointRecord]
    evaluations: list[EvalMetrics]


@dataclass(frozen=True)
class ResumePoint:
    header: ResumeHeader
    state: StoredTensors


def save_resume_point(folder: Path, header: ResumeHeader, state: dict[str, Tensor]) -> None:
    """Write a resume point. Raises Internal, and keeps the previous one, if it does not read back as written."""
    words = header.model_dump_json()
    with whole_path(folder / RESUME_FILE) as partial:
        save_file(state, partial, metadata={"cursor": words, "digest": _digest(words, state)})
        _read(partial)


def load_resume_point(folder: Path) -> ResumePoint | None:
    """The resume point; None if there is none. Raises Internal for an unreadable file."""
    path = folder / RESUME_FILE
    return _read(path) if path.exists() else None


def _read(path: Path) -> ResumePoint:
    try:
        state = StoredTensors(path)
        words = state.metadata["cursor"]
        digest = hashlib.sha256(words.encode())
        for name in sorted(state.names):
            digest.update(name.encode())
            state.add_to(digest, name)
        if state.metadata["digest"] != digest.hexdigest():
            raise Internal("The resume point cannot be read: its bytes have changed.")
        return ResumePoint(ResumeHeader.model_validate_json(words), state)
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise Internal(f"The resume point cannot be read: {error}") from None


def export(trained: Trainable, folder: Path, base: BaseWeights) -> dict[str, str]:
    """Write a PEFT adapter or a whole model, read it back and compare; returns file name → sha256. Raises if a value is
    not finite or differs."""
    with whole_folder(folder) as partial:
        if isinstance(trained, FullWeights):
            write_model(trained, partial, base)
        else:
            assert isinstance(trained, LoraAdapter)
            _write_adapter(trained, partial, folder.name, base.public_name)
        names = sorted(path.name for path in partial.iterdir())
        for name in names:
            flush(partial / name)
        shutil.rmtree(folder, ignore_errors=True)
    return {name: file_digest(folder / name) for name in names}


def _write_adapter(adapter: LoraAdapter, folder: Path, checkpoint: str, base_name: str) -> None:
    write_adapter(adapter, folder, base_name)
    again = read_adapter(folder)
    for name, tensor in adapter.named_tensors():
        if not torch.equal(again.tensors[name], tensor.detach().cpu()):
            raise Internal(f"Checkpoint {checkpoint}: {name} was not read back as it was written.")


def link_folder(source: Path, target: Path) -> None:
    """Hard links to the files under another path; copies if the file system has no links."""
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for path in source.iterdir():
        try:
            os.link(path, target / path.name)
        except OSError:
            shutil.copyfile(path, target / path.name)


def fingerprint(facts: dict[str, object]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _digest(text: str, state: dict[str, Tensor]) -> str:
    """Digest of the content of a resume point, so that a flipped bit on the disk does not become part of a model."""
    digest = hashlib.sha256(text.encode())
    for name, tensor in sorted(state.items()):
        digest.update(name.encode())
        digest.update(content(tensor))
    return digest.hexdigest()
