"""Products and attention of linear_panels.cpp, for processors that multiply bfloat16: the faster twin of products and
attention in torch, chosen once per base. Weights are in panels, bfloat16 or int8 with a scale for every 32 of them.

Every number is summed in one order, for any batch and any cut of a prompt. With both in use a response never depends on
other requests. A processor with matrix tiles (AMX) uses torch for the products, whose library uses the tiles. A
processor without AVX512-BF16, or limited by ATEN_CPU_CAPABILITY, uses torch for both.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache, partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from sarto.engine.models.decoder import GROUPS, Adapters, Decoder, DecoderConfig, Group, Projection
from sarto.engine.ops.library import INT, INT64, POINTER, find_library, load, works
from sarto.engine.serving.kv_cache import CacheShape, Lane
from sarto.engine.serving.linear import (
    AdapterPool,
    Choice,
    Layout,
    Products,
    ServingProducts,
    group_shapes,
    return_weights,
    take_weights,
)
from sarto.errors import FailedPrecondition

PANEL = 32
"""Outputs side by side; linear_panels.cpp has the same number."""
FACTORS = 16
"""Columns of A side by side."""
SCALE_INPUTS = 32
"""Inputs with a common scale in int8."""
_N, _P = INT64, POINTER


class _AdaptersOfCall(ctypes.Structure):
    """SartoAdapters in linear_panels.cpp."""

    _fields_ = (("columns", _N), ("depth", _N), ("slots", _P), ("a", _P), ("b", _P), ("starts", _P))


_SIGNATURES = {
    "panel_product": (_N, _N, _N, _P, _N, _P, _P, _P, _N, _P, INT, _P, _N),
    "attend_rows": (*[_N] * 6, _P, _P, _N, _P, _P, _P, _N),
    "attend_chunk": (*[_N] * 7, _P, _N, _P, _P, _P, _N),
}


class CompiledPanels:
    """The compiled library. Raises OSError if it cannot be loaded, AttributeError if it lacks the functions."""

    def __init__(self, path: Path) -> None:
        functions = load(path, _SIGNATURES)
        self.product, self.attend = functions["panel_product"], functions["attend_rows"]
        self.attend_chunk = functions["attend_chunk"]


@cache
def _compiled() -> CompiledPanels | None:
    """None if this processor, torch's capability level, or this build of the package has no panels."""
    path = find_library()
    if path is None or torch.backends.cpu.get_cpu_capability() != "AVX512":
        return None
    return CompiledPanels(path) if works(path, "panels_work") else None


def compiled_panels() -> CompiledPanels | None:
    """The library for products with weights in panels; None if there is none, or if torch is faster."""
    return None if torch.cpu.get_capabilities().get("amx_bf16", False) else _compiled()


def compiled_attention(config: DecoderConfig, shape: CacheShape) -> CompiledPanels | None:
    """The library for attention, or None for torch. Also used on a processor with tiles, since torch's products of few
    rows or odd numbers of keys depend on the cut of a prompt."""
    fits = shape.dtype == torch.bfloat16 and shape.device.type == "cpu" and config.head_dim % PANEL == 0
    return _compiled() if fits else None


def attend_rows(
    compiled: CompiledPanels, config: DecoderConfig, layer: int, lane: Lane, positions: Tensor, qkv: Tensor, out: Tensor
) -> None:
    """Write the new key and value of each row, (n, …) of qkv for slots 0 … n - 1, and attend: out (n, H hd)."""
    assert qkv.dtype == out.dtype == torch.bfloat16 and qkv.stride(1) == out.stride(1) == 1
    keys, values = lane.pointers(layer)
    compiled.attend(
        positions.shape[0], config.heads, config.kv_heads, config.head_dim, lane.width, config.windows[layer] or 0,
        positions.data_ptr(), qkv.data_ptr(), qkv.stride(0), keys, values, out.data_ptr(), out.stride(0),
    )  # fmt: skip


def attend_chunk(
    compiled: CompiledPanels, config: DecoderConfig, layer: int, lane: Lane, start: int, qkv: Tensor, out: Tensor
) -> None:
    """Attention of prompt tokens from position `start`, their keys and values in the lane's one slot: out (n, H hd)."""
    assert qkv.dtype == out.dtype == torch.bfloat16 and qkv.stride(1) == out.stride(1) == 1
    keys, values = lane.pointers(layer)
    compiled.attend_chunk(
        start, len(qkv), config.heads, config.kv_heads, config.head_dim, lane.width, config.windows[layer] or 0,
        qkv.data_ptr(), qkv.stride(0), keys, values, out.data_ptr(), out.stride(0),
    )  # fmt: skip


def choose_products(decoder: Decoder, *, int8: bool = False) -> ServingProducts:
    """The fastest products of this processor. Raises FailedPrecondition for int8 if no products support it."""
    compiled = compiled_panels()
    is_here = compiled is not None and decoder.device.type == "cpu" and decoder.dtype == torch.bfloat16
    if int8 and not is_here:
        raise FailedPrecondition(
            "Serving in int8 needs a processor with AVX512-BF16 and without matrix tiles, and a package that was built "
            "with a compiler; set serving_precision to auto."
        )
    if int8 and not _fits(decoder, SCALE_INPUTS):
        raise FailedPrecondition(f"This base has matrices whose inputs are not a multiple of {SCALE_INPUTS}: no int8.")
    if compiled is None or not is_here or not _fits(decoder, 2):
        return Products(decoder)
    return PanelProducts(decoder, compiled, int8=int8)


def _fits(decoder: Decoder, step: int) -> bool:
    inputs = [decoder.layer(0).projection(group).inputs for group in GROUPS]
    return all(count % step == 0 for count in (*inputs, decoder.config.width))


def in_panels(rows: Tensor, panel: int) -> Tensor:
    """(N, K) → (N / panel, K / 2, panel, 2), zeros behind the last row."""
    padded = F.pad(rows, (0, 0, 0, -len(rows) % panel))
    return padded.view(-1, panel, rows.shape[1] // 2, 2).permute(0, 2, 1, 3).contiguous()


def quantised(weight: Tensor) -> tuple[Tensor, Tensor]:
    """(N, K) as int8 codes, and their scales in bfloat16 for each SCALE_INPUTS of a row. A code times its scale,
    rounded to bfloat16, is the multiplied weight."""
    groups = weight.float().unflatten(1, (-1, SCALE_INPUTS))
    scales = (groups.abs().amax(-1) / 127).clamp_(min=1e-30).bfloat16()
    codes = (groups / scales.float()[:, :, None]).round_().clamp_(-127, 127)
    return codes.flatten(1).to(torch.int8), scales


@dataclass(frozen=True)
class PanelMatrix:
    """One frozen matrix (outputs, inputs) in the layout of linear_panels.cpp."""

    outputs: int
    inputs: int
    weights: Tensor
    scales: Tensor | None
    bias: Tensor | None
    """float32"""

    @classmethod
    def of(cls, weight: Tensor, bias: Tensor | None, *, int8: bool = False) -> PanelMatrix:
        outputs, inputs = weight.shape
        wide_bias = None if bias is None else bias.float().contiguous()
        if not int8:
            return cls(outputs, inputs, in_panels(weight, PANEL), None, wide_bias)
        codes, scales = quantised(weight)
        padded = F.pad(scales, (0, 0, 0, -outputs % PANEL))  # (panels · PANEL, groups)
        in_order = padded.view(-1, PANEL, scales.shape[1]).transpose(1, 2).contiguous()
        return cls(outputs, inputs, in_panels(codes, PANEL), in_order, wide_bias)

    def plain(self) -> Tensor:
        """The original matrix; it cannot be restored from int8."""
        assert self.scales is None
        return self.weights.permute(0, 2, 1, 3).reshape(-1, self.inputs)[: self.outputs].clone()

    def multiply(self, compiled: CompiledPanels, x: Tensor, adapters: ctypes.Array[_AdaptersOfCall], y: Tensor) -> None:
        """x (n, inputs) to y (n, outputs), bfloat16 or float32."""
        assert x.dtype == torch.bfloat16 and x.stride(1) == 1 and y.is_contiguous()
        compiled.product(
            x.shape[0], self.inputs, self.outputs, x.data_ptr(), x.stride(0), self.weights.data_ptr(),
            None if self.scales is None else self.scales.data_ptr(),
            None if self.bias is None else self.bias.data_ptr(),
            len(adapters), adapters, y.dtype == torch.float32, y.data_ptr(), self.outputs,
        )  # fmt: skip


NO_ADAPTERS = (_AdaptersOfCall * 0)()


class PanelProducts:
    """The seam of linear.py over panels."""

    def __init__(self, decoder: Decoder, compiled: CompiledPanels, *, int8: bool = False) -> None:
        self.compiled, self.shapes = compiled, group_shapes(decoder)
        self.last_layer = decoder.config.layers - 1
        self._starts: dict[tuple[Group, int], Tensor] = {}
        self._head = PanelMatrix.of(decoder.head, None, int8=int8)
        self.layers: list[dict[Group, PanelMatrix]] = []
        self._plan = lru_cache(maxsize=8)(_AdapterRows)
        take_weights(decoder, self.layers, partial(PanelMatrix.of, int8=int8))

    def give_back(self, decoder: Decoder) -> None:
        return_weights(decoder, self.layers)

    def depth(self, group: Group, rank: int) -> int:
        """Factors that an output uses: those of its projection, or all if a panel holds several projections."""
        return rank if self._is_aligned(group) else rank * self.shapes[group].projections

    def layouts(self, rank: int) -> dict[Group, Layout]:
        layouts: dict[Group, Layout] = {}
        for group, shape in self.shapes.items():
            blocks = -(-shape.projections * rank // FACTORS)
            panels = -(-len(shape.parts) * shape.width // PANEL)
            depth = self.depth(group, rank)
            layouts[group] = ((blocks, shape.inputs // 2, FACTORS, 2), (panels, depth // 2, PANEL, 2))
        return layouts

    def arranged(self, group: Group, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        shape = self.shapes[group]
        rank = a.shape[1] // shape.projections
        rows = b.view(len(shape.parts), rank, shape.width).transpose(1, 2)  # (blocks, width, R)
        if not self._is_aligned(group):
            spread = rows.new_zeros(len(shape.parts), shape.width, shape.projections, rank)
            for block, part in enumerate(shape.parts):
                spread[block, :, part] = rows[block]
            rows = spread.flatten(2)
        return in_panels(a.t(), FACTORS), in_panels(rows.flatten(0, 1), PANEL)

    def adapters(
        self, rows: Sequence[Choice], chunks: Sequence[tuple[int, Choice]], last_rows: Sequence[Choice]
    ) -> Adapters:
        everyone = [*rows, *(choice for length, choice in chunks for _ in range(length))]
        return PanelAdapters(self, self._planned(everyone), self._planned(last_rows))

    def logits(self, hidden: Tensor) -> Tensor:
        y = hidden.new_empty(len(hidden), self._head.outputs, dtype=torch.float32)
        self._head.multiply(self.compiled, hidden, NO_ADAPTERS, y)
        return y

    def _planned(self, choices: Sequence[Choice]) -> _AdapterRows:
        pools = {choice[0] for choice in choices if choice is not None}
        return self._plan(self, tuple(choices), sum(pool.slots for pool in pools))

    def _is_aligned(self, group: Group) -> bool:
        return self.shapes[group].projections == 1 or self.shapes[group].width % PANEL == 0

    def starts(self, group: Group, rank: int) -> Tensor:
        """The first factor of each panel, (panels,) int64."""
        if (group, rank) not in self._starts:
            shape = self.shapes[group]
            panels = -(-len(shape.parts) * shape.width // PANEL)
            first = torch.zeros(panels, dtype=torch.int64)
            if shape.projections > 1 and self._is_aligned(group):
                first = rank * torch.tensor(shape.parts).repeat_interleave(shape.width // PANEL)
            self._starts[group, rank] = first
        return self._starts[group, rank]


class _AdapterRows:
    """The adapters of the rows of one batch composition, in the form of linear_panels.cpp. `slots` of the pools only
    distinguishes compositions: a pool that grew has another address."""

    def __init__(self, products: PanelProducts, choices: tuple[Choice, ...], slots: int) -> None:
        pools = {choice[0] for choice in choices if choice is not None}
        self._products = products
        self._pools: list[tuple[AdapterPool, Tensor]] = []
        for pool in sorted(pools, key=lambda pool: pool.rank):
            mine = [choice[1] if choice is not None and choice[0] is pool else -1 for choice in choices]
            self._pools.append((pool, torch.tensor(mine, dtype=torch.int32)))
        self._calls: dict[tuple[int, Group], ctypes.Array[_AdaptersOfCall]] = {}

    def call(self, layer: int, group: Group) -> ctypes.Array[_AdaptersOfCall]:
        if not self._pools:
            return NO_ADAPTERS
        prepared = self._calls.get((layer, group))
        if prepared is None:
            prepared = self._calls[layer, group] = (_AdaptersOfCall * len(self._pools))(
                *(self._of_pool(pool, slots, layer, group) for pool, slots in self._pools)
            )
        return prepared

    def _of_pool(self, pool: AdapterPool, slots: Tensor, layer: int, group: Group) -> _AdaptersOfCall:
        a, b = pool.matrices(layer, group)
        return _AdaptersOfCall(
            a.shape[1] * FACTORS, 2 * b.shape[2], slots.data_ptr(), a.data_ptr(), b.data_ptr(),
            self._products.starts(group, pool.rank).data_ptr(),
        )  # fmt: skip


@dataclass(frozen=True)
class PanelAdapters:
    """Adapters of one step."""

    products: PanelProducts
    rows: _AdapterRows
    last_rows: _AdapterRows

    def project(self, layer: int, group: Group, x: Tensor, projection: Projection) -> Tensor:
        rows = self.last_rows if layer == self.products.last_layer and group != "qkv" else self.rows
        matrix = self.products.layers[layer][group]
        y = x.new_empty(len(x), matrix.outputs)
        matrix.multiply(self.products.compiled, x, rows.call(layer, group), y)
        return y
