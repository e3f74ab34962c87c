"""What lies in memory that nobody wrote, and behind the operands of products: for tests on any processor."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils import deterministic
from torch.utils._python_dispatch import TorchDispatchMode

from sarto.engine.ops.operands import BLOCK, aligned

PRODUCTS = (
    "mm", "addmm", "bmm", "baddbmm", "mv", "addmv", "linear", "matmul", "_linear_pointwise", "_reorder_linear_weight",
    "scaled_dot_product_attention", "_scaled_dot_product_flash_attention_for_cpu",
)  # fmt: skip
no_warnings = pytest.mark.filterwarnings("ignore:.*does not have a deterministic implementation")


@contextmanager
def fresh_memory(poisoned: bool) -> Iterator[None]:
    """With poison, all memory that torch hands out unwritten is NaN (whole numbers: their largest value). What torch
    does not hand out is zeros by its own contract: anonymous pages (`mmap`) and vectors of C++."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    filled, deterministic.fill_uninitialized_memory = deterministic.fill_uninitialized_memory, poisoned
    try:
        yield
    finally:
        deterministic.fill_uninitialized_memory = filled
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


class LookBehind(TorchDispatchMode):
    """Looks behind every row of every operand of a product, up to the next whole block, before the product is made.

    Raises AssertionError where that is not a finite number or not memory of the operand at all. With poisoned memory
    this finds what was never written. `apart`: operands seen whose rows lie apart."""

    def __init__(self) -> None:
        super().__init__()
        self.seen, self.apart = 0, 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function.overloadpacket.__name__ in PRODUCTS:
            for each in args:
                if isinstance(each, Tensor) and each.layout == torch.strided and each.dim() >= 2 and each.numel():
                    self._look(each, str(function))
        return function(*args, **(kwargs or {}))

    def _look(self, operand: Tensor, product: str) -> None:
        self.seen += 1
        stored = operand if operand.stride(-1) == 1 or operand.shape[-1] == 1 else operand.mT
        place = f"{product}: an operand {tuple(operand.shape)} with strides {operand.stride()}"
        width, step = stored.shape[-1], stored.stride(-2)
        if width > 1:
            assert stored.stride(-1) == 1, f"{place} has no dense rows"
        if step <= width:
            return
        self.apart += 1
        columns = min(step, aligned(width)) - width
        if not columns:
            return
        sizes, strides = stored.shape[:-1], stored.stride()[:-1]
        start = stored.storage_offset() + width
        last = start + columns + sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True))
        held = stored.untyped_storage().nbytes() // stored.itemsize
        assert last <= held, f"{place} ends within a block of {BLOCK} where its memory ends"
        behind = stored.as_strided((*sizes, columns), (*strides, 1), start)
        assert torch.isfinite(behind).all(), f"{place} has NaN or infinity behind its rows"
