"""The element-wise pieces from kernels.cpp, called on raw pointers; the twin of `kernels.py`, held equal by a test.

The library is built when the package is built, once for each processor level, and is absent where there was no
compiler. It must be loaded after torch, whose OpenMP runtime it uses: then there is one thread pool in the process.
"""

from __future__ import annotations

import ctypes
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import torch
from torch import Tensor

from sarto.engine.ops.plain import Activation, HeadShape
from sarto.engine.ops.segments import Block, Segments

LEVELS = {"AVX512": ("v4", "v3"), "AVX2": ("v3",), "DEFAULT": ("base",)}
"""What torch says of the processor → builds that run on it, best first."""
KINDS: dict[Activation, int] = {"silu": 0, "gelu_tanh": 1}
_I, _N, _P, _F = ctypes.c_int, ctypes.c_int64, ctypes.c_void_p, ctypes.c_float
_SIGNATURES = {
    "norm_forward": (_I, _N, _N, _P, _P, _N, _P, _F, _P, _P, _P, _P, _N),
    "norm_backward": (_I, _N, _N, _P, _N, _P, _P, _P, _P, _P, _P, _N),
    "gated_forward": (_I, _I, _N, _N, _P, _N, _P, _N),
    "gated_backward": (_I, _I, _N, _N, _P, _N, _P, _N, _P, _N),
    "rotate": (_I, _N, _N, _N, _N, _P, _N, _P, _P, _F, _F, _P, _N),
    "softmax_forward": (_I, _N, _N, _N, _N, _N, _N, _P),
    "softmax_backward": (_I, _N, _N, _N, _N, _N, _N, _P, _P),
    "sum_uses": (_I, _N, _N, _P, _P, _P, _P, _N),
    "loss": (_I, _N, _N, _P, _P, _P, _P, _I),
}


def find_library() -> Path | None:
    """The best build for this processor, or None where the package was built without."""
    for level in LEVELS.get(torch.backends.cpu.get_cpu_capability(), ("base",)):
        for suffix in EXTENSION_SUFFIXES:
            path = Path(__file__).with_name(f"_kernels_{level}{suffix}")
            if path.exists():
                return path
    return None


class CompiledKernels:
    """Raises OSError for a library that cannot be loaded."""

    def __init__(self, path: Path) -> None:
        library = ctypes.CDLL(str(path))
        self.name = f"compiled {path.name.split('.')[0].removeprefix('_kernels_')}"
        for name, types in _SIGNATURES.items():
            function = getattr(library, f"sarto_{name}")
            function.argtypes, function.restype = types, None
        self._library = library

    def norm_forward(
        self, stream: Tensor | None, delta: Tensor, weight: Tensor, eps: float, out: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        rows, width = delta.shape
        total = delta.new_empty(rows, width, dtype=torch.float32)
        kept, scale = delta.new_empty(rows, width), total.new_empty(rows)
        self._library.sarto_norm_forward(
            _half(delta), rows, width, None if stream is None else _dense(stream), _rows(delta), delta.stride(0),
            _dense(weight), eps, _dense(total), _dense(kept), _dense(scale), _rows(out), out.stride(0),
        )  # fmt: skip
        return total, kept, scale

    def norm_backward(
        self, grad: Tensor, stream_grad: Tensor | None, kept: Tensor, scale: Tensor, weight: Tensor, out: Tensor
    ) -> Tensor:
        rows, width = grad.shape
        total = scale.new_empty(rows, width)
        self._library.sarto_norm_backward(
            _half(grad), rows, width, _rows(grad), grad.stride(0), None if stream_grad is None else _dense(stream_grad),
            _dense(kept), _dense(scale), _dense(weight), _dense(total), _rows(out), out.stride(0),
        )  # fmt: skip
        return total

    def gated_forward(self, gate_up: Tensor, activation: Activation, out: Tensor) -> None:
        self._library.sarto_gated_forward(
            _half(gate_up), KINDS[activation], *out.shape, _rows(gate_up), gate_up.stride(0), _rows(out), out.stride(0)
        )

    def gated_backward(self, grad: Tensor, gate_up: Tensor, activation: Activation, out: Tensor) -> None:
        self._library.sarto_gated_backward(
            _half(grad), KINDS[activation], *grad.shape, _rows(grad), grad.stride(0), _rows(gate_up), gate_up.stride(0),
            _rows(out), out.stride(0),
        )  # fmt: skip

    def rotate(
        self, qkv: Tensor, cos: Tensor, sin: Tensor, shape: HeadShape, query_scale: float, sign: float, out: Tensor
    ) -> None:
        self._library.sarto_rotate(
            _half(qkv), len(qkv), shape.heads, shape.kv_heads, shape.head_dim, _rows(qkv), qkv.stride(0), _dense(cos),
            _dense(sin), query_scale, sign, _rows(out), out.stride(0),
        )  # fmt: skip

    def softmax_forward(self, scores: Tensor, block: Block, window: int | None) -> Tensor:
        self._library.sarto_softmax_forward(*_span(scores, block, window), _dense(scores))
        return scores

    def softmax_backward(self, weights: Tensor, grad: Tensor, block: Block, window: int | None) -> Tensor:
        self._library.sarto_softmax_backward(*_span(grad, block, window), _dense(weights), _dense(grad))
        return grad

    def sum_uses(self, cells: Tensor, segments: Segments, out: Tensor) -> None:
        self._library.sarto_sum_uses(
            _half(cells), *out.shape, _dense(cells), _dense(segments.starts), _dense(segments.uses), _rows(out),
            out.stride(0),
        )  # fmt: skip

    def loss(self, logits: Tensor, targets: Tensor, gradient: bool) -> tuple[Tensor, Tensor]:
        losses = logits.new_empty(len(logits), dtype=torch.float32)
        right = logits.new_empty(len(logits), dtype=torch.bool)
        self._library.sarto_loss(
            _half(logits), *logits.shape, _dense(logits), _dense(targets), _dense(losses), _dense(right), gradient
        )
        return losses, right


def _half(tensor: Tensor) -> bool:
    assert tensor.dtype in (torch.bfloat16, torch.float32), tensor.dtype
    return tensor.dtype == torch.bfloat16


def _dense(tensor: Tensor) -> int:
    assert tensor.is_contiguous()
    return tensor.data_ptr()


def _rows(tensor: Tensor) -> int:
    """A matrix whose rows are dense; they may lie apart."""
    assert tensor.stride(1) == 1
    return tensor.data_ptr()


def _span(scores: Tensor, block: Block, window: int | None) -> tuple[int, ...]:
    """(Z, rep * queries, keys) and its place in the sequence, as the library takes it."""
    rows, keys = scores.shape[0] * scores.shape[1], scores.shape[2]
    return _half(scores), rows, block.last - block.first, keys, block.first, block.low, window or 0
