"""Panels against what they are the twin of: products and attention in torch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from sarto.engine.families.decoder import GROUPS, Decoder, DecoderConfig
from sarto.engine.families.load import load_base
from sarto.engine.serving.adapters import ResidentAdapters
from sarto.engine.serving.attention import StepAttention
from sarto.engine.serving.cache import CacheShape, Lane
from sarto.engine.serving.panels import (
    NO_ADAPTERS,
    PanelMatrix,
    PanelProducts,
    attend_rows,
    compiled_panels,
    decoding_attention,
)
from sarto.engine.serving.products import Choice, Products, ServingProducts
from tests.serving.making import make_adapter
from tests.tiny import make_tiny_base

COMPILED = compiled_panels()
pytestmark = pytest.mark.skipif(COMPILED is None, reason="this processor or this build has no panels")


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


def multiplied(matrix: PanelMatrix, x: Tensor, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    assert COMPILED is not None
    y = torch.full((len(x), matrix.outputs), torch.nan, dtype=dtype)
    matrix.multiply(COMPILED, x, NO_ADAPTERS, y)
    return y


@pytest.mark.parametrize("rows", [1, 7, 12, 13, 40])
def test_a_product_in_panels_is_the_exact_one_rounded_once(rows: int) -> None:
    weight, bias, x = random(100, 64), random(100, seed=1), random(rows, 80, seed=2)[:, :64]
    exact = x.double() @ weight.double().t() + bias.double()
    matrix = PanelMatrix.of(weight, bias)
    torch.testing.assert_close(multiplied(matrix, x, torch.float32).double(), exact, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(multiplied(matrix, x).double(), exact, rtol=2**-8, atol=1e-4)


def test_a_row_has_the_same_bits_whatever_rows_are_beside_it() -> None:
    matrix, x = PanelMatrix.of(random(96, 64), None), random(64, 64, seed=1)
    alone = torch.cat([multiplied(matrix, x[n : n + 1]) for n in range(64)])
    assert torch.equal(multiplied(matrix, x), alone)
    assert torch.equal(multiplied(matrix, x[3:20]), alone[3:20])


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma3"])
def test_every_projection_with_adapters_of_several_ranks_equals_its_twin(family: str, tmp_path: Path) -> None:
    base = make_tiny_base(tmp_path / "base", family)
    keys = [make_adapter(base, tmp_path / str(n), rank=rank, seed=n) for n, rank in enumerate((4, 16, 4))]
    x = random(22, 4 * 32, seed=3)

    def answers(decoder: Decoder, products: ServingProducts) -> dict[tuple[int, str], Tensor]:
        resident = ResidentAdapters(decoder, products, 3)
        with torch.inference_mode():
            a, b, c = (resident.acquire(key, None) for key in keys)
            rows: list[Choice] = [a, None, b, c, a]
            adapters = products.adapters(rows, [(13, b), (4, None)], rows)
            return {
                (layer, group): adapters.project(layer, group, x[:count, : projection.inputs], projection).float()
                for layer in range(decoder.config.layers)
                for group in GROUPS
                for projection in [decoder.layer(layer).projection(group)]
                for count in [5 if layer == decoder.config.layers - 1 and group != "qkv" else 22]
            }

    assert COMPILED is not None
    one, other = load_base(base, torch.bfloat16), load_base(base, torch.bfloat16)
    found, expected = answers(one, PanelProducts(one, COMPILED)), answers(other, Products(other))
    for place, value in expected.items():
        error = float((found[place] - value).norm() / value.norm())
        assert error < 0.01, (place, error)


@pytest.mark.parametrize(("heads", "kv_heads", "size", "window"), [(6, 2, 64, None), (4, 4, 32, 20), (4, 1, 256, 33)])
def test_decoding_attention_equals_its_twin(heads: int, kv_heads: int, size: int, window: int | None) -> None:
    config = DecoderConfig(
        family="llama", vocabulary=10, width=heads * size, layers=2, heads=heads, kv_heads=kv_heads, head_dim=size,
        feed_forward=8, context=512, norm_eps=1e-5, inverse_frequencies=(), windows=(None, window),
    )  # fmt: skip
    lane = Lane(CacheShape.of(config, torch.bfloat16, torch.device("cpu")), 128)
    lengths = [1, 16, 17, 100]
    for number, length in enumerate(lengths):
        lane.take(random(2, 2, kv_heads, length, size, seed=number), length - 1)
    positions = torch.tensor([length - 1 for length in lengths])
    qkv = random(4, (heads + 2 * kv_heads) * size, seed=9)
    qkv[:, : heads * size] *= size**-0.5
    assert COMPILED is not None and decoding_attention(config, torch.bfloat16) is COMPILED
    exact = Lane(CacheShape.of(config, torch.float32, torch.device("cpu")), 128, 4)
    for slot in range(4):
        exact.take(lane.content(slot).float(), 128)
    twin = StepAttention(config, torch.float32, [(exact, positions)], [])
    for layer in range(2):
        out = torch.empty(4, heads * size, dtype=torch.bfloat16)
        attend_rows(COMPILED, config, layer, lane, positions, qkv, out)
        torch.testing.assert_close(out.float(), twin.attend(layer, qkv.float()), rtol=2**-7, atol=2e-3)
        assert torch.equal(lane.block[layer].float(), exact.block[layer])
