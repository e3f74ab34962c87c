"""LoRA on a decoder's projections, and PEFT's file format in and out.

y = Wx + (alpha / rank) B A x, with A (R, in) and B (out, R), B zero at the start. All values of an adapter lie in one
float32 vector and their gradients in another, so that the optimiser, the norm and a resume point are one tensor each.
Used by training, by the validation pass, and by whoever reads an adapter's files (`read_adapter`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from mmap import mmap
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sarto.engine.families.decoder import GROUPS, Decoder, Group, Projection
from sarto.engine.families.matrices import Dense
from sarto.engine.ops.plain import LoraWeights
from sarto.errors import InvalidArgument

WEIGHTS_FILE = "adapter_model.safetensors"
CONFIG_FILE = "adapter_config.json"
ALL_TARGETS = tuple(name.split(".")[-1] for names in GROUPS.values() for name in names)
"""`q_proj`, `k_proj` …: every linear projection of a layer."""
MAX_RANK = 32
"""The largest `adapterSize` of the API, and what room is made for; a larger adapter moves the matrices instead."""


@dataclass(frozen=True)
class AdapterShape:
    rank: int
    alpha: float
    targets: tuple[str, ...] = ALL_TARGETS

    def __post_init__(self) -> None:
        unknown = sorted(set(self.targets) - set(ALL_TARGETS))
        if unknown or not self.targets:
            raise InvalidArgument(f"adapter targets {unknown or 'are empty'}; known: {', '.join(ALL_TARGETS)}")

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


@dataclass(frozen=True)
class AdapterFile:
    """A PEFT adapter on disk: float32 tensors by the names in the file."""

    shape: AdapterShape
    tensors: dict[str, Tensor]


class LoraAdapter(nn.Module):
    """The trainable adapter of one decoder; hand it to `Decoder.forward` as `adapters`.

    Each adapted matrix that is kept as it is multiplied gets borders (see LoraWeights), in its room where it has some,
    else by moving into a larger one that the decoder's projection then shows into. So a decoder serves one LoraAdapter
    at a time; the base's values stay.
    """

    def __init__(self, decoder: Decoder, shape: AdapterShape, seed: int = 0) -> None:
        super().__init__()
        self.shape = shape
        self.ops = decoder.ops
        self.layout = list(_layout(decoder, shape))
        count = sum(math.prod(slot.size) for slot in self.layout)
        self.values = torch.zeros(count, device=decoder.device)
        self.gradients = torch.zeros(count, device=decoder.device)
        self._parts: dict[tuple[int, Group], LoraWeights] = {}
        self._fill(decoder)
        self._draw(seed)

    def project(self, layer: int, group: Group, x: Tensor, projection: Projection) -> Tensor:
        weights = self._parts.get((layer, group))
        if weights is None:
            return F.linear(x, projection.weight, projection.bias)
        return self.ops.lora(x, weights)

    def named_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """(PEFT's name, its view into `values`) in the order of the vector."""
        for slot, part in zip(self.layout, self._views(self.values), strict=True):
            for name, tensor in zip(slot.names, part.split(slot.rows), strict=True):
                yield f"base_model.model.{name}.weight", tensor

    def named_gradients(self) -> Iterator[tuple[str, Tensor]]:
        for slot, part in zip(self.layout, self._views(self.gradients), strict=True):
            for name, tensor in zip(slot.names, part.split(slot.rows), strict=True):
                yield f"base_model.model.{name}.weight", tensor

    @torch.no_grad()
    def load(self, file: AdapterFile) -> None:
        """Take over the values of an adapter of the same shape. Raises InvalidArgument naming what differs."""
        if file.shape != self.shape:
            raise InvalidArgument(f"the adapter to start from has {file.shape}, this job tunes {self.shape}")
        for name, tensor in self.named_tensors():
            stored = file.tensors.get(name)
            if stored is None or stored.shape != tensor.shape:
                raise InvalidArgument(f"the adapter to start from does not fit this base: tensor {name}")
            tensor.copy_(stored)

    def _views(self, vector: Tensor) -> Iterator[Tensor]:
        at = 0
        for slot in self.layout:
            count = math.prod(slot.size)
            yield vector[at : at + count].view(slot.size)
            at += count

    def _fill(self, decoder: Decoder) -> None:
        """One LoraWeights for each adapted matrix; parameters are views into the two vectors."""
        views = zip(self._views(self.values), self._views(self.gradients), strict=True)
        parameters = []
        for value, gradient in views:
            parameter = nn.Parameter(value)
            parameter.grad = gradient
            parameters.append(parameter)
        self.parameters_in_order = nn.ParameterList(parameters)
        found = iter(parameters)
        for layer in range(decoder.config.layers):
            for group in GROUPS:
                projection = decoder.layer(layer).projection(group)
                cuts = _cuts(projection, self.shape.targets)
                if not cuts:
                    continue
                a = next(found)
                b = tuple(next(found) for _ in cuts)
                bordered = None
                if isinstance(projection.matrix, Dense) and not decoder.is_sharded:
                    bordered = _bordered(projection, projection.matrix, self.shape.rank * len(cuts))
                self._parts[layer, group] = LoraWeights(
                    bordered, projection.bias, projection.outputs, projection.inputs, self.shape.rank,
                    self.shape.scale, tuple(cuts.values()), a, b, projection.matrix if bordered is None else None,
                )  # fmt: skip

    @torch.no_grad()
    def _draw(self, seed: int) -> None:
        """As PEFT draws: A uniform in ± 1 / sqrt(in), B zero."""
        generator = torch.Generator().manual_seed(seed)
        for slot, part in zip(self.layout, self._views(self.values), strict=True):
            if slot.names[0].endswith("lora_A"):
                part.copy_((torch.rand(slot.size, generator=generator) * 2 - 1) / math.sqrt(slot.size[1]))


@dataclass(frozen=True)
class _Slot:
    """A stretch of the vector: A of all projections of a matrix, or B of one."""

    names: tuple[str, ...]
    size: tuple[int, int]

    @property
    def rows(self) -> int:
        return self.size[0] // len(self.names)


def _cuts(projection: Projection, targets: tuple[str, ...]) -> dict[str, tuple[int, int]]:
    """(first row, rows) of each adapted projection of a matrix."""
    found, at = {}, 0
    for name, rows in zip(projection.names, projection.cuts, strict=True):
        if name.split(".")[-1] in targets:
            found[name] = (at, rows)
        at += rows
    return found


def _layout(decoder: Decoder, shape: AdapterShape) -> Iterator[_Slot]:
    for layer in range(decoder.config.layers):
        for group in GROUPS:
            projection = decoder.layer(layer).projection(group)
            cuts = _cuts(projection, shape.targets)
            names = [f"model.layers.{layer}.{name}" for name in cuts]
            if cuts:
                yield _Slot(tuple(f"{name}.lora_A" for name in names), (shape.rank * len(cuts), projection.inputs))
            for name, (_, rows) in zip(names, cuts.values(), strict=True):
                yield _Slot((f"{name}.lora_B",), (rows, shape.rank))


def _bordered(projection: Projection, matrix: Dense, columns: int) -> Tensor:
    outputs, inputs, bordered = projection.outputs, projection.inputs, matrix.room
    if bordered is None or len(bordered) < outputs + columns:
        bordered = matrix.values.new_empty(outputs + columns, inputs + columns)
        bordered[:outputs, :inputs] = matrix.values
        projection.weight = bordered[:outputs, :inputs]
    bordered = bordered[: outputs + columns, : inputs + columns]
    bordered[outputs:] = 0
    bordered[:, inputs:] = 0
    return bordered


def make_room(decoder: Decoder) -> None:
    """Move every matrix into memory that forked processes share, with room for the borders of any adapter.

    A process that is alone with it lays its adapter there without touching fresh memory; any other must call
    `leave_room` first, and moves into memory of its own. The base's values are only ever read."""
    projections = [decoder.layer(index).projection(group) for index in range(decoder.config.layers) for group in GROUPS]
    kept = [(each, each.matrix, MAX_RANK * len(each.names)) for each in projections if isinstance(each.matrix, Dense)]
    sizes = [(matrix.shape[0] + border, matrix.shape[1] + border) for _, matrix, border in kept]
    if not kept:
        return
    memory, at = mmap(-1, sum(map(math.prod, sizes)) * decoder.dtype.itemsize), 0
    for (projection, matrix, _), size in zip(kept, sizes, strict=True):
        # each a tensor of its own, so that autograd takes no writing beside one for a writing into another
        room = torch.frombuffer(memory, dtype=decoder.dtype, count=math.prod(size), offset=at).view(size)
        at += room.nbytes
        corner = room[: projection.outputs, : projection.inputs]
        corner.copy_(matrix.values)
        projection.matrix = Dense(corner, room)


def leave_room(decoder: Decoder) -> None:
    """Another process lays its adapter there: keep out of it."""
    for module in decoder.modules():
        if isinstance(module, Dense):
            module.room = None


def write_adapter(adapter: LoraAdapter, folder: Path, base_name: str) -> None:
    """`adapter_model.safetensors` and `adapter_config.json`, as PEFT reads them."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in adapter.named_tensors()}
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    shape = adapter.shape
    config: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name,
        "revision": None,
        "r": shape.rank,
        "lora_alpha": int(shape.alpha) if float(shape.alpha).is_integer() else shape.alpha,
        "lora_dropout": 0.0,
        "target_modules": sorted(shape.targets),
        "modules_to_save": None,
        "layers_to_transform": None,
        "layers_pattern": None,
        "rank_pattern": {},
        "alpha_pattern": {},
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "use_rslora": False,
        "use_dora": False,
        "inference_mode": True,
    }
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n")


def read_adapter(folder: Path) -> AdapterFile:
    """Raises InvalidArgument for files that are missing, damaged, not finite, or of a LoRA kind we do not compute."""
    try:
        config: dict[str, Any] = json.loads((folder / CONFIG_FILE).read_text())
        tensors = load_file(folder / WEIGHTS_FILE)
    except (OSError, ValueError, SafetensorError) as error:
        raise InvalidArgument(f"adapter {folder.name} cannot be read: {error}") from None
    for key in ("use_rslora", "use_dora", "fan_in_fan_out", "rank_pattern", "alpha_pattern", "modules_to_save"):
        if config.get(key):
            raise InvalidArgument(f"adapter {folder.name} uses {key}, which Sarto does not compute")
    if config.get("peft_type") != "LORA" or config.get("bias", "none") != "none":
        raise InvalidArgument(f"adapter {folder.name} is not a plain LoRA adapter")
    targets = config["target_modules"]
    named = ALL_TARGETS if targets == "all-linear" else tuple(t for t in ALL_TARGETS if t in targets)
    if isinstance(targets, list) and len(named) != len(targets):
        raise InvalidArgument(f"adapter {folder.name} targets {targets}; known: {', '.join(ALL_TARGETS)}")
    check_finite(tensors, folder.name)
    shape = AdapterShape(int(config["r"]), float(config["lora_alpha"]), named)
    return AdapterFile(shape, {name: tensor.float() for name, tensor in tensors.items()})


def check_finite(tensors: dict[str, Tensor], name: str) -> None:
    for key, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise InvalidArgument(f"adapter {name} holds values that are not finite, in {key}")
