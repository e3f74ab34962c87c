"""All weights of a decoder, trained: float32 masters and gradients in two vectors, and the products' copies.

The masters have the values of the weights' files. The decoder multiplies copies of them in its own dtype; in float32
its matrices are views of the masters. `refresh` updates the copies after a step.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sarto.engine.models.decoder import GROUPS, Decoder, Group, Projection, TrainedEnds
from sarto.engine.models.load import HEAD_NORMS
from sarto.engine.ops.trained import TrainedMatrix, linear
from sarto.errors import InvalidArgument


@dataclass(frozen=True)
class _Slot:
    """A range of the vectors: tensors of the files, one below the other."""

    names: tuple[str, ...]
    cuts: tuple[int, ...]
    """Rows of each."""
    width: int
    """Columns; 0 for a vector."""

    @property
    def size(self) -> tuple[int, ...]:
        rows = sum(self.cuts)
        return (rows, self.width) if self.width else (rows,)


class FullWeights(nn.Module):
    """The trainable weights of one decoder, for `Decoder.forward` as `adapters`. Replaces the decoder's own.

    `load` fills them. `shape` stands for an adapter's. A decoder has one FullWeights, and no adapter beside it."""

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        assert not decoder.is_sharded
        self.shape = "all weights"
        self._decoder, self._offset = decoder, decoder.config.norm_offset
        self._slots = list(_slots(decoder))
        count = sum(math.prod(slot.size) for slot in self._slots)
        device, dtype = decoder.device, decoder.dtype
        self.values = torch.zeros(count, device=device)
        self.gradients = torch.zeros(count, device=device)
        self._products = self.values if dtype == torch.float32 else torch.zeros(count, dtype=dtype, device=device)
        self._anchor = torch.zeros((), device=device, requires_grad=True)
        self._matrices: dict[tuple[int, Group], TrainedMatrix] = {}
        self._norms: list[tuple[nn.Parameter, Tensor]] = []
        self._replace(decoder)

    def project(self, layer: int, group: Group, x: Tensor, projection: Projection) -> Tensor:
        return linear(x, self._matrices[layer, group])

    def named_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """(Name in the files, its view into `values`) in the order of the vector; a tied head is no tensor of its
        own."""
        for slot, part in zip(self._slots, self._views(self.values), strict=True):
            yield from zip(slot.names, part.split(slot.cuts), strict=True)

    @torch.no_grad()
    def load(self, tensors: Iterable[tuple[str, Tensor]]) -> None:
        """Copy the tensors of the files; unknown ones are skipped, since loading the decoder has checked them. Raises
        InvalidArgument for a missing one."""
        wanted = dict(self.named_tensors())
        for name, tensor in tensors:
            if (place := wanted.pop(name, None)) is not None:
                place.copy_(tensor)
        if wanted:
            raise InvalidArgument(f"the weights to start from have no tensor {next(iter(wanted))}")
        self.refresh()

    @torch.no_grad()
    def refresh(self) -> None:
        """Update the decoder after `values` have changed."""
        if self._products is not self.values:
            self._products.copy_(self.values)
        for norm, master in self._norms:
            torch.add(master, self._offset, out=norm.data)

    def _views(self, vector: Tensor) -> Iterator[Tensor]:
        at = 0
        for slot in self._slots:
            count = math.prod(slot.size)
            yield vector[at : at + count].view(slot.size)
            at += count

    def _replace(self, decoder: Decoder) -> None:
        """Let the decoder use the products' copies, and give its norms gradients in the vector."""
        views = zip(self._views(self.values), self._views(self._products), self._views(self.gradients), strict=True)
        ends = [TrainedMatrix(used, gradient) for _, used, gradient in (next(views) for _ in _ends(decoder))]
        decoder.embedding, decoder.head = ends[0].values, ends[-1].values
        decoder.trained = TrainedEnds(ends[0], ends[-1], self._anchor)
        decoder.norm = self._norm(*next(views))
        for index in range(decoder.config.layers):
            layer = decoder.layer(index)
            for name in layer.norms:
                layer.norms[name] = self._norm(*next(views))
            for group in GROUPS:
                projection = layer.projection(group)
                _, used, gradient = next(views)
                projection.weight = used
                bias = bias_gradient = None
                if projection.bias is not None:
                    _, bias, bias_gradient = next(views)
                    projection.bias = bias
                self._matrices[index, group] = TrainedMatrix(used, gradient, bias, bias_gradient)

    def _norm(self, master: Tensor, _: Tensor, gradient: Tensor) -> nn.Parameter:
        """A norm's weights as they are multiplied: in float32, with the family's offset."""
        made = nn.Parameter(master.clone())
        made.grad = gradient
        self._norms.append((made, master))
        return made


def _ends(decoder: Decoder) -> list[str]:
    return ["model.embed_tokens.weight"] + ([] if decoder.config.tied else ["lm_head.weight"])


def _slots(decoder: Decoder) -> Iterator[_Slot]:
    config = decoder.config
    for name in _ends(decoder):
        yield _Slot((name,), (config.vocabulary,), config.width)
    yield _Slot(("model.norm.weight",), (config.width,), 0)
    for index in range(config.layers):
        layer, at = decoder.layer(index), f"model.layers.{index}."
        for name, weights in layer.norms.items():
            stored = config.norms.get(name) or HEAD_NORMS[name]
            yield _Slot((f"{at}{stored}.weight",), (len(weights),), 0)
        for group in GROUPS:
            projection = layer.projection(group)
            cuts = tuple(projection.cuts)
            yield _Slot(tuple(f"{at}{name}.weight" for name in projection.names), cuts, projection.inputs)
            if projection.bias is not None:
                yield _Slot(tuple(f"{at}{name}.bias" for name in projection.names), cuts, 0)
