"""LoRA on a decoder's projections, and PEFT's file format.

y = Wx + (alpha / rank) B A x, with A (R, in) and B (out, R), B zero at the start. All values of an adapter are in one
float32 vector and their gradients in another, so that the optimiser, the norm and a resume point are one tensor each.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from mmap import mmap

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sarto.engine.models.adapter_shape import MAX_RANK, AdapterFile, AdapterShape
from sarto.engine.models.decoder import GROUPS, Decoder, Group, Projection
from sarto.engine.models.matrices import Dense
from sarto.engine.ops.operands import aligned, bordered
from sarto.engine.ops.reference import LoraWeights
from sarto.errors import InvalidArgument


class LoraAdapter(nn.Module):
    """The trainable adapter of one decoder, for `Decoder.forward` as `adapters`.

    Each adapted matrix that is multiplied as it is stored gets borders (see LoraWeights): in its reserved space if it
    has some, else in a larger copy that replaces the decoder's matrix. So a decoder has one LoraAdapter at a time. The
    base's values do not change."""

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

    def refresh(self) -> None:
        """Do nothing: each product reads `values`."""

    def named_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """(PEFT's name, its view into `values`) in the order of the vector."""
        for slot, part in zip(self.layout, self._views(self.values), strict=True):
            for name, tensor in zip(slot.names, part.split(slot.rows), strict=True):
                yield f"base_model.model.{name}.weight", tensor

    @torch.no_grad()
    def load(self, file: AdapterFile) -> None:
        """Copy the values of an adapter of the same shape. Raises InvalidArgument with the difference."""
        if file.shape != self.shape:
            raise InvalidArgument(f"The adapter to start from has {file.shape}, this job tunes {self.shape}.")
        for name, tensor in self.named_tensors():
            stored = file.tensors.get(name)
            if stored is None or stored.shape != tensor.shape:
                raise InvalidArgument(f"The adapter to start from does not fit this base: tensor {name}.")
            tensor.copy_(stored)

    def _views(self, vector: Tensor) -> Iterator[Tensor]:
        at = 0
        for slot in self.layout:
            count = math.prod(slot.size)
            yield vector[at : at + count].view(slot.size)
            at += count

    def _fill(self, decoder: Decoder) -> None:
        """Create a LoraWeights for each adapted matrix; parameters are views into the two vectors."""
        views = zip(self._views(self.values), self._views(self.gradients), strict=True)
        parameters = []
        for value, gradient in views:
            parameter = nn.Parameter(value)
            parameter.grad = gradient  # a view: autograd adds to it in place, so no gradient is gathered afterwards
            parameters.append(parameter)
        self.parameters_in_order = nn.ParameterList(parameters)
        tensors = iter(parameters)
        for layer in range(decoder.config.layers):
            for group in GROUPS:
                projection = decoder.layer(layer).projection(group)
                cuts = _cuts(projection, self.shape.targets)
                if not cuts:
                    continue
                a = next(tensors)
                b = tuple(next(tensors) for _ in cuts)
                bordered = None  # a packed or sharded matrix exists only during a product, which builds its borders
                if isinstance(projection.matrix, Dense) and not decoder.is_sharded:
                    bordered = _bordered(projection, projection.matrix, self.shape.rank * len(cuts))
                self._parts[layer, group] = LoraWeights(
                    bordered, projection.bias, projection.outputs, projection.inputs, self.shape.rank,
                    self.shape.scale, tuple(cuts.values()), a, b, projection.matrix if bordered is None else None,
                )  # fmt: skip

    @torch.no_grad()
    def _draw(self, seed: int) -> None:
        """Initialise as PEFT does: A uniform in ± 1 / sqrt(in), B zero."""
        generator = torch.Generator().manual_seed(seed)  # the CPU's: a seed draws the same adapter on every device
        for slot, part in zip(self.layout, self._views(self.values), strict=True):
            if slot.names[0].endswith("lora_A"):
                part.copy_((torch.rand(slot.size, generator=generator) * 2 - 1) / math.sqrt(slot.size[1]))


@dataclass(frozen=True)
class _Slot:
    """A range of the vector: A of all projections of a matrix, or B of one."""

    names: tuple[str, ...]
    size: tuple[int, int]

    @property
    def rows(self) -> int:
        return self.size[0] // len(self.names)


def _cuts(projection: Projection, targets: tuple[str, ...]) -> dict[str, tuple[int, int]]:
    """(first row, rows) of each adapted projection of a matrix."""
    cuts, at = {}, 0
    for name, rows in zip(projection.names, projection.cuts, strict=True):
        if name.split(".")[-1] in targets:
            cuts[name] = (at, rows)
        at += rows
    return cuts


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
    outputs, inputs, room = projection.outputs, projection.inputs, matrix.room
    rows, width = aligned(outputs + columns), aligned(inputs + columns)
    if room is None or len(room) < rows or room.shape[1] < width:
        room = bordered(matrix.values, columns)
        projection.weight = room[:outputs, :inputs]
    room[outputs:rows] = 0
    room[:, inputs:] = 0  # to the end, since an earlier run's larger adapter may have used it
    return room[:rows, :width]


def make_room(decoder: Decoder) -> None:
    """Move every matrix into memory that forked processes share, with space for the borders of any adapter.

    One process at a time may put its adapter there without allocating memory. Any other must first call `leave_room`
    and use memory of its own. The base's values are only read."""
    projections = [decoder.layer(index).projection(group) for index in range(decoder.config.layers) for group in GROUPS]
    reserved = [
        (each, each.matrix, MAX_RANK * len(each.names)) for each in projections if isinstance(each.matrix, Dense)
    ]
    sizes = [tuple(aligned(side + border) for side in matrix.shape) for _, matrix, border in reserved]
    if not reserved:
        return
    memory, at = mmap(-1, sum(map(math.prod, sizes)) * decoder.dtype.itemsize), 0
    for (projection, matrix, _), size in zip(reserved, sizes, strict=True):
        # One tensor per matrix: with views of one, autograd would treat a write to a border as a change of the others.
        room = torch.frombuffer(memory, dtype=decoder.dtype, count=math.prod(size), offset=at).view(size)
        at += room.nbytes
        corner = room[: projection.outputs, : projection.inputs]
        corner.copy_(matrix.values)
        projection.matrix = Dense(corner, room)


def leave_room(decoder: Decoder) -> None:
    """Stop using the shared space, because another process has its adapter there."""
    for module in decoder.modules():
        if isinstance(module, Dense):
            module.room = None
