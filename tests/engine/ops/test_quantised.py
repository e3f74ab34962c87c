"""Matrices in 8 and 4 bits: the nearest codes, alike however the matrix is cut, and products that use them."""

from __future__ import annotations

import pytest
import torch

from sarto.engine.models.matrices import Packed
from sarto.engine.ops.eager_kernels import EagerKernels
from sarto.engine.ops.fused import FusedOperations
from sarto.engine.ops.operands import bordered
from sarto.engine.ops.quantised import BLOCK, NF4, QUANTISATIONS, Quantisation, pack, rounded, unpack
from sarto.engine.ops.reference import LoraWeights, Operations, PlainOperations

KINDS = pytest.mark.parametrize("kind", QUANTISATIONS)


def draw(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape) + shape[0])).to(dtype)


def test_int8_is_off_by_half_a_step_at_most_and_exact_at_the_largest_value() -> None:
    weight = draw(20, 96)
    codes, scales = pack(weight, "int8")
    assert codes.dtype == torch.int8 and codes.shape == weight.shape and scales.shape == (20, 1)
    found = unpack(codes, scales, 96, torch.float32)
    assert ((found - weight).abs() <= scales / 2 * 1.0001).all()
    assert torch.allclose(found.abs().amax(1), weight.abs().amax(1))


def test_nf4_takes_the_nearest_of_its_sixteen_values() -> None:
    weight = draw(6, 2 * BLOCK)
    codes, scales = pack(weight, "nf4")
    assert codes.dtype == torch.uint8 and codes.numel() == weight.numel() // 2 and scales.shape == (6, 2)
    candidates = torch.tensor(NF4)[:, None, None] * weight.unflatten(1, (2, BLOCK)).abs().amax(2).repeat_interleave(
        BLOCK, 1
    )
    nearest = candidates.gather(0, (candidates - weight).abs().argmin(0)[None])[0]
    torch.testing.assert_close(unpack(codes, scales, 2 * BLOCK, torch.float32), nearest)


@KINDS
@pytest.mark.parametrize("columns", [64, 96, 33])
def test_rows_are_packed_by_themselves_and_rounding_twice_is_rounding_once(kind: Quantisation, columns: int) -> None:
    weight = draw(10, columns, dtype=torch.bfloat16)
    whole = rounded(weight, kind)
    assert torch.equal(whole, torch.cat([rounded(weight[:3], kind), rounded(weight[3:], kind)]))
    assert whole.shape == weight.shape and whole.dtype == weight.dtype
    assert (whole - weight).abs().max() < 0.5
    zero = torch.zeros(2, columns)
    assert torch.equal(rounded(zero, kind), zero)


@KINDS
@pytest.mark.parametrize("ops", [PlainOperations(), FusedOperations(EagerKernels())], ids=lambda ops: str(ops.name))
def test_a_product_with_a_packed_matrix_is_that_with_its_rounded_values(kind: Quantisation, ops: Operations) -> None:
    cuts, inputs, outputs, rank = ((0, 10), (22, 14)), 64, 36, 4
    weight, x0, a0 = draw(outputs, inputs), draw(50, inputs), draw(2 * rank, inputs)
    b0 = [draw(rows, rank) for _, rows in cuts]
    matrix = bordered(rounded(weight, kind), 2 * rank)
    found = []
    for kept, frozen in ((matrix, None), (None, Packed(weight, kind))):
        x, a, *b = (torch.nn.Parameter(each.clone()) for each in (x0, a0, *b0))
        weights = LoraWeights(kept, None, outputs, inputs, rank, 0.5, cuts, a, tuple(b), frozen)
        y = ops.lora(x, weights)
        (y * draw(50, outputs)).sum().backward()
        found.append([y.detach(), *(each.grad for each in (x, a, *b))])
    for left, right in zip(*found, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-5)
