"""Products and decoding attention from panels.cpp, for processors that multiply bfloat16: the faster twin of products
and attention in torch, chosen once per base. Weights lie in panels, bfloat16 or int8 with a scale for every 32 of them.

A processor with matrix tiles (AMX) keeps to torch, whose library uses them; any other processor has no such kernels.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache, partial

import torch
import torch.nn.functional as F
from torch import Tensor

from sarto.engine.families.decoder import GROUPS, Adapters, Decoder, DecoderConfig, Group, Projection
from sarto.engine.ops.compiled import find_library
from sarto.engine.serving.cache import Lane
from sarto.engine.serving.products import (
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
"""Outputs side by side; panels.cpp has the same number."""
FACTORS = 16
"""Columns of A side by side."""
SCALE_INPUTS = 32
"""Inputs that share a scale in int8."""
_I, _N, _P = ctypes.c_int, ctypes.c_int64, ctypes.c_void_p


class _AdaptersOfCall(ctypes.Structure):
    """SartoAdapters in panels.cpp."""

    _fields_ = (("columns", _N), ("depth", _N), ("slots", _P), ("a", _P), ("b", _P), ("starts", _P))


class CompiledPanels:
    """Raises OSError for a library that cannot be loaded. `works`: it has these functions, and this processor can."""

    def __init__(self, path: str) -> None:
        library = ctypes.CDLL(path)
        self.works = hasattr(library, "sarto_panels_work") and bool(library.sarto_panels_work())
        if self.works:
            self.product = library.sarto_panel_product
            self.product.argtypes = (_N, _N, _N, _P, _N, _P, _P, _P, _N, _P, _I, _P, _N)
            self.product.restype = None
            self.attend = library.sarto_attend_rows
            self.attend.argtypes = (*[_N] * 6, _P, _P, _N, _P, _P, _P, _N)
            self.attend.restype = None


@cache
def compiled_panels() -> CompiledPanels | None:
    """None where this processor or this build of the package has no use for them."""
    path = find_library()
    if path is None or torch.cpu.get_capabilities().get("amx_bf16", False):
        return None
    found = CompiledPanels(str(path))
    return found if found.works else None


def decoding_attention(config: DecoderConfig, dtype: torch.dtype) -> CompiledPanels | None:
    """Who computes attention of rows that decode, where it is not torch."""
    return compiled_panels() if dtype == torch.bfloat16 and config.head_dim % 32 == 0 else None


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


def choose_products(decoder: Decoder, *, int8: bool = False) -> ServingProducts:
    """What multiplies fastest here. Raises FailedPrecondition for int8 where there is nothing to multiply it with."""
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
    rounded to bfloat16, is the weight that is multiplied."""
    groups = weight.float().unflatten(1, (-1, SCALE_INPUTS))
    scales = (groups.abs().amax(-1) / 127).clamp_(min=1e-30).bfloat16()
    codes = (groups / scales.float()[:, :, None]).round_().clamp_(-127, 127)
    return codes.flatten(1).to(torch.int8), scales


@dataclass(frozen=True)
class PanelMatrix:
    """One frozen matrix (outputs, inputs) as panels.cpp reads it."""

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
        """The matrix as it was; int8 has lost it."""
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
    """The seam of products.py over panels."""

    def __init__(self, decoder: Decoder, compiled: CompiledPanels, *, int8: bool = False) -> None:
        self.compiled, self.shapes = compiled, group_shapes(decoder)
        self.last_layer = decoder.config.layers - 1
        self._starts: dict[tuple[Group, int], Tensor] = {}
        self._head = PanelMatrix.of(decoder.head, None, int8=int8)
        self.layers: list[dict[Group, PanelMatrix]] = []
        self._plan = lru_cache(maxsize=8)(_Rows)
        take_weights(decoder, self.layers, partial(PanelMatrix.of, int8=int8))

    def give_back(self, decoder: Decoder) -> None:
        return_weights(decoder, self.layers)

    def depth(self, group: Group, rank: int) -> int:
        """Factors that an output reads: those of its projection, or of all where a panel holds several projections."""
        return rank if self._is_aligned(group) else rank * self.shapes[group].projections

    def layouts(self, rank: int) -> dict[Group, Layout]:
        found: dict[Group, Layout] = {}
        for group, shape in self.shapes.items():
            blocks = -(-shape.projections * rank // FACTORS)
            panels = -(-len(shape.parts) * shape.width // PANEL)
            depth = self.depth(group, rank)
            found[group] = ((blocks, shape.inputs // 2, FACTORS, 2), (panels, depth // 2, PANEL, 2))
        return found

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
        self, rows: Sequence[Choice], chunks: Sequence[tuple[int, Choice]], wanted: Sequence[Choice]
    ) -> Adapters:
        everyone = [*rows, *(choice for length, choice in chunks for _ in range(length))]
        return PanelAdapters(self, self._planned(everyone), self._planned(wanted))

    def logits(self, hidden: Tensor) -> Tensor:
        y = hidden.new_empty(len(hidden), self._head.outputs, dtype=torch.float32)
        self._head.multiply(self.compiled, hidden, NO_ADAPTERS, y)
        return y

    def _planned(self, choices: Sequence[Choice]) -> _Rows:
        pools = {choice[0] for choice in choices if choice is not None}
        return self._plan(self, tuple(choices), sum(pool.slots for pool in pools))

    def _is_aligned(self, group: Group) -> bool:
        return self.shapes[group].projections == 1 or self.shapes[group].width % PANEL == 0

    def starts(self, group: Group, rank: int) -> Tensor:
        """The first factor that each panel reads, (panels,) int64."""
        if (group, rank) not in self._starts:
            shape = self.shapes[group]
            panels = -(-len(shape.parts) * shape.width // PANEL)
            first = torch.zeros(panels, dtype=torch.int64)
            if shape.projections > 1 and self._is_aligned(group):
                first = rank * torch.tensor(shape.parts).repeat_interleave(shape.width // PANEL)
            self._starts[group, rank] = first
        return self._starts[group, rank]


class _Rows:
    """Who gets whose terms in one make-up of a batch, as panels.cpp reads it. `slots` of the pools only tells make-ups
    apart: a pool that grew lies elsewhere."""

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
        found = self._calls.get((layer, group))
        if found is None:
            found = self._calls[layer, group] = (_AdaptersOfCall * len(self._pools))(
                *(self._of_pool(pool, slots, layer, group) for pool, slots in self._pools)
            )
        return found

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
    rows: _Rows
    wanted: _Rows

    def project(self, layer: int, group: Group, x: Tensor, projection: Projection) -> Tensor:
        rows = self.wanted if layer == self.products.last_layer and group != "qkv" else self.rows
        matrix = self.products.layers[layer][group]
        y = x.new_empty(len(x), matrix.outputs)
        matrix.multiply(self.products.compiled, x, rows.call(layer, group), y)
        return y
