"""A fully tuned model on disk: a folder like a base's, with float32 weights. Weights rounded to bfloat16 would lose
steps that are smaller than half a unit of it."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch

from sarto.contract.common import BaseWeights
from sarto.engine.models.full_weights import FullWeights
from sarto.engine.weights.hub_files import copy_configuration, copy_texts
from sarto.engine.weights.tensor_file import content, save_file
from sarto.errors import Internal, InvalidArgument

WEIGHTS_FILE = "model.safetensors"


def write_model(weights: FullWeights, folder: Path, base: BaseWeights) -> None:
    """Write the model's files. Raises InvalidArgument for values that are not finite, Internal if the file does not
    read back as it was written."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = dict(weights.named_tensors())
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise InvalidArgument(f"the trained weights hold values that are not finite, in {name}")
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    _check(folder / WEIGHTS_FILE, weights)
    copy_configuration(Path(base.folder), folder, "float32")
    copy_texts(Path(base.folder), folder)


def file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check(path: Path, weights: FullWeights) -> None:
    """Compare the file's data with the vector: its tensors lie in that order."""
    wanted = hashlib.sha256(content(weights.values)).hexdigest()
    with path.open("rb") as file:
        file.seek(8 + int.from_bytes(file.read(8), "little"))
        if hashlib.file_digest(file, "sha256").hexdigest() != wanted:
            raise Internal("a tensor was not read back as it was written")
