"""Products with frozen weights, and what an adapter adds to them."""

from __future__ import annotations

from pathlib import Path

import torch

from sarto.engine.families.load import load_base
from sarto.engine.serving.products import Products
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
