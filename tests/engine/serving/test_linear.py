"""Products with frozen weights, and what an adapter adds to them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from sarto.engine.models.decoder import GROUPS
from sarto.engine.models.load import load_base
from sarto.engine.serving.linear import Products, product_in_torch, return_weights, take_weights
from tests.tiny import make_tiny_base


def test_terms_of_an_adapter_are_added_before_the_sum_is_rounded(tmp_path: Path) -> None:
    decoder = load_base(make_tiny_base(tmp_path / "base"), torch.bfloat16)
    weight = decoder.layer(0).gate_up.weight.clone()
    products = Products(decoder)
    x = torch.randn(64, weight.shape[1], generator=torch.Generator().manual_seed(1)).bfloat16()
    exact = x.float() @ weight.float().t()
    terms = exact.flip(0).bfloat16()
    rounded_twice = products.project(0, "gate_up", x, None) + terms
    found = products.project(0, "gate_up", x, terms)
    exact += terms.float()
    assert float((found - exact).norm()) < 0.8 * float((rounded_twice - exact).norm())
    assert float((found - exact).norm()) < 2**-8 * float(exact.norm())


def test_terms_of_zero_change_no_bit(tmp_path: Path) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        products = Products(load_base(make_tiny_base(tmp_path / "base", "qwen2"), dtype))
        x = torch.randn(3, 32, generator=torch.Generator().manual_seed(1)).to(dtype)
        without = products.project(0, "qkv", x, None)
        assert torch.equal(products.project(0, "qkv", x, torch.zeros_like(without)), without)


def test_matrices_of_every_form_come_back_to_the_decoder_they_were_taken_from(tmp_path: Path) -> None:
    """On a GPU, and in bfloat16 on a processor without AVX-512, they are taken as they are."""
    for device in (torch.device("cpu"), torch.device("cuda")):
        decoder = load_base(make_tiny_base(tmp_path / "base"), torch.float32)
        projections = [decoder.layer(index).projection(group) for index in range(2) for group in GROUPS]
        before = [projection.weight.clone() for projection in projections]
        taken: list[Any] = []
        take_weights(decoder, taken, product_in_torch(torch.float32, device))
        assert not any(projection.weight.numel() for projection in projections)
        return_weights(decoder, taken)
        assert all(torch.equal(one.weight, other) for one, other in zip(projections, before, strict=True))
