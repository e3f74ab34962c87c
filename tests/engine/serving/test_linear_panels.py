"""Panels against what they are the twin of: products and attention in torch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from sarto.engine.models.decoder import GROUPS, Decoder, DecoderConfig
from sarto.engine.models.load import load_base
from sarto.engine.serving.adapter_pool import ResidentAdapters
from sarto.engine.serving.attention import Chunk, StepAttention
from sarto.engine.serving.kv_cache import CacheShape, Lane
from sarto.engine.serving.linear import Choice, Products, ServingProducts
from sarto.engine.serving.linear_panels import (
    NO_ADAPTERS,
    PanelMatrix,
    PanelProducts,
    attend_rows,
    choose_products,
    compiled_attention,
    compiled_panels,
    quantised,
)
from sarto.engine.serving.parity import certify
from sarto.errors import FailedPrecondition
from tests.parity.test_parity import rows as example_rows
from tests.parity.test_parity import trainer_of
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


@pytest.mark.parametrize("rows", [1, 12, 13])
def test_int8_multiplies_by_codes_times_scales_and_loses_little(rows: int) -> None:
    weight, x = random(70, 96), random(rows, 96, seed=1)
    matrix = PanelMatrix.of(weight, None, int8=True)
    codes, scales = quantised(weight)
    opened = (codes.unflatten(1, (-1, 32)) * scales.float()[:, :, None]).flatten(1).bfloat16()
    exact = x.double() @ opened.double().t()
    torch.testing.assert_close(multiplied(matrix, x, torch.float32).double(), exact, rtol=1e-5, atol=1e-4)
    assert float((opened.float() - weight.float()).norm() / weight.float().norm()) < 0.008


def test_int8_where_it_cannot_be_is_refused_by_name(tmp_path: Path) -> None:
    decoder = load_base(make_tiny_base(tmp_path / "base"), torch.float32)
    with pytest.raises(FailedPrecondition, match="Serving in int8 needs"):
        choose_products(decoder, int8=True)


def test_a_certificate_in_int8_states_both_perplexities(tmp_path: Path) -> None:
    base = make_tiny_base(tmp_path / "base")
    folder = make_adapter(base, tmp_path / "adapter").folder
    trainer = trainer_of(base, folder, torch.bfloat16)
    cpu = torch.device("cpu")
    found = certify(base, Path(folder), example_rows(), trainer, dtype=torch.bfloat16, device=cpu, int8=True)
    assert found.precision == "int8" and found.passed
    assert found.training_perplexity is not None and found.serving_perplexity is not None
    assert 0.5 < found.serving_perplexity / found.training_perplexity < 2
    assert found.training_perplexity != found.serving_perplexity


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
def test_compiled_attention_equals_its_twin(heads: int, kv_heads: int, size: int, window: int | None) -> None:
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
    assert COMPILED is not None and compiled_attention(config, lane.shape) is COMPILED
    exact = Lane(CacheShape.of(config, torch.float32, torch.device("cpu")), 128, 4)
    for slot in range(4):
        exact.take(lane.content(slot).float(), 128)
    twin = StepAttention(config, exact.shape, [(exact, positions)], [])
    for layer in range(2):
        out = torch.empty(4, heads * size, dtype=torch.bfloat16)
        attend_rows(COMPILED, config, layer, lane, positions, qkv, out)
        torch.testing.assert_close(out.float(), twin.attend(layer, qkv.float()), rtol=2**-7, atol=2e-3)
        assert torch.equal(lane.block[layer].float(), exact.block[layer])


@pytest.mark.parametrize(("heads", "kv_heads", "size", "window"), [(6, 2, 64, None), (4, 4, 32, 20), (4, 1, 256, 33)])
def test_attention_of_a_prompt_equals_its_twin_however_it_is_cut(
    heads: int, kv_heads: int, size: int, window: int | None
) -> None:
    config = DecoderConfig(
        family="llama", vocabulary=10, width=heads * size, layers=2, heads=heads, kv_heads=kv_heads, head_dim=size,
        feed_forward=8, context=512, norm_eps=1e-5, inverse_frequencies=(), windows=(None, window),
    )  # fmt: skip
    qkv = random(150, (heads + 2 * kv_heads) * size, seed=9)
    qkv[:, : heads * size] *= size**-0.5

    def attended(dtype: torch.dtype, *lengths: int) -> Tensor:
        lane = Lane(CacheShape.of(config, dtype, torch.device("cpu")), 192)
        lane.open()
        found, start = [], 0
        for length in lengths:
            step = StepAttention(config, lane.shape, [], [Chunk(lane, start, length)])
            rows = qkv[start : start + length].to(dtype)
            found.append(torch.cat([step.attend(layer, rows) for layer in range(2)], 1))
            start += length
        return torch.cat(found)

    whole = attended(torch.bfloat16, 150)
    torch.testing.assert_close(whole.float(), attended(torch.float32, 150), rtol=2**-6, atol=4e-3)
    for cuts in ((128, 22), (32, 1, 90, 27), (5, 145)):
        assert torch.equal(attended(torch.bfloat16, *cuts), whole), cuts
