"""The operations of a CUDA device, uncompiled on a processor and, where there is a device, as they are used there."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask

from sarto.engine.ops.cuda import AcceleratedOperations, document_mask
from sarto.engine.ops.reference import Operations, PlainOperations
from sarto.engine.ops.segments import Segments
from sarto.engine.ops.select import choose_operations
from tests.engine.ops.test_operations import ROWS, SHAPE, WIDTH, assert_close, draw, make_segments, results

LENGTHS = [[16, 12, 14], [200, 190]]
pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning")


def moved(segments: Segments, device: str) -> Segments:
    tensors = {name: getattr(segments, name).to(device) for name in ("source", "first", "starts", "uses")}
    return dataclasses.replace(segments, **tensors)


@pytest.mark.parametrize("window", [None, 5, 70])
def test_attention_under_a_document_mask_equals_the_plain_one(window: int | None) -> None:
    """Values only: torch has no backward pass of its flexible attention on a processor."""
    segments = make_segments(LENGTHS)
    qkv = draw(len(segments.first), WIDTH)
    ops = AcceleratedOperations(compiled=False)
    found = ops.attend(qkv, segments, SHAPE, window, False)
    assert_close(([found], []), ([PlainOperations().attend(qkv, segments, SHAPE, window, False)], []), torch.float32)


@pytest.mark.parametrize("window", [None, 5, 100, 200])
@pytest.mark.parametrize("lengths", [LENGTHS, [[30, 30]], [[700], [128, 128]], [[128] * 3, [256]]])
def test_the_blocks_of_a_mask_are_those_that_every_pair_of_cells_asks_for(
    lengths: list[list[int]], window: int | None
) -> None:
    found = document_mask(make_segments(lengths), window)
    cells = found.seq_lengths[0]
    asked = create_block_mask(found.mask_mod, None, None, cells, cells, device="cpu")
    assert torch.equal(found.to_dense(), asked.to_dense())
    for name in ("kv_num_blocks", "full_kv_num_blocks", "q_num_blocks", "full_q_num_blocks"):
        assert torch.equal(getattr(found, name), getattr(asked, name)), name


def test_the_mask_of_one_batch_is_not_used_for_the_next() -> None:
    ops = AcceleratedOperations(compiled=False)
    for lengths in (LENGTHS, [[30, 30]], LENGTHS):
        segments = make_segments(lengths)
        qkv = draw(len(segments.first), WIDTH)
        expected = PlainOperations().attend(qkv, segments, SHAPE, None, False)
        assert_close(([ops.attend(qkv, segments, SHAPE, None, False)], []), ([expected], []), torch.float32)


@pytest.mark.gpu
@pytest.mark.parametrize("window", [None, 5, 70])
def test_attention_on_the_device_has_the_plain_gradients(window: int | None) -> None:
    segments = moved(make_segments(LENGTHS), "cuda")
    qkv = draw(len(segments.first), SHAPE.total * 64).cuda()
    shape = dataclasses.replace(SHAPE, head_dim=64)

    def both(kind: Operations) -> tuple[list[Tensor], list[Tensor]]:
        leaf = qkv.clone().requires_grad_()
        out = kind.attend(leaf, segments, shape, window, False)
        out.backward(draw(*out.shape, seed=7).cuda())
        assert leaf.grad is not None
        return [out.detach()], [leaf.grad]

    assert_close(both(choose_operations(torch.device("cuda"))), both(PlainOperations()), torch.bfloat16)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_loss_and_elements_equal_the_plain_ones(dtype: torch.dtype, device: str) -> None:
    ops = AcceleratedOperations(compiled=False) if device == "cpu" else choose_operations(torch.device("cuda"))
    hidden, head = draw(ROWS, 24, dtype=dtype), draw(70, 24, dtype=dtype).to(device)
    targets = (torch.arange(ROWS) % 70).to(device)
    weight = draw(24).to(device)

    def whole(kind: Operations, x: Tensor) -> Tensor:
        stream, normed = kind.add_norm(None, x.to(device), weight, 1e-5)
        gated = kind.gated(torch.cat([normed, kind.norm(normed, weight, 1e-5)], 1), "silu")
        return (kind.token_loss(gated, head, targets)[0].sum() + stream.sum()).cpu()

    assert_close(
        results(lambda x: whole(ops, x), hidden), results(lambda x: whole(PlainOperations(), x), hidden), dtype
    )
