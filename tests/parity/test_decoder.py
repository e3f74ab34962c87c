"""Our decoder equals the reference implementation, family by family, in float32."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from sarto.contract.common import BaseWeights
from sarto.engine.models.decoder import Decoder, DecoderConfig
from sarto.engine.models.load import load_base
from tests.tiny import NoAdapters, make_tiny_base

FAMILIES = ["llama", "mistral", "qwen2", "qwen3", "gemma3"]


class OneSequence:
    """All rows are one sequence; the slow and obvious attention."""

    def __init__(self, config: DecoderConfig) -> None:
        self.config = config

    def attend(self, layer: int, qkv: Tensor) -> Tensor:
        c = self.config
        q, k, v = qkv.unflatten(1, (-1, c.head_dim)).transpose(0, 1).split([c.heads, c.kv_heads, c.kv_heads])
        k, v = (t.repeat_interleave(c.heads // c.kv_heads, 0) for t in (k, v))
        at = torch.arange(qkv.shape[0])
        seen = at[None] <= at[:, None]
        if (window := c.windows[layer]) is not None:
            seen &= at[None] > at[:, None] - window
        scores = (q @ k.transpose(1, 2)).masked_fill(~seen, float("-inf"))
        return (scores.softmax(-1) @ v).transpose(0, 1).flatten(1)


def ours(model: Decoder, tokens: Tensor, rows: Tensor | None = None) -> Tensor:
    hidden = model(tokens, torch.arange(len(tokens)), OneSequence(model.config), NoAdapters(), rows)
    return model.logits(hidden)


def assert_same_logits(base: BaseWeights, length: int = 50) -> None:
    reference = AutoModelForCausalLM.from_pretrained(base.folder, dtype=torch.float32, attn_implementation="eager")
    model = load_base(base, torch.float32)
    tokens = torch.randint(0, model.config.vocabulary, (length,), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = reference(input_ids=tokens[None]).logits[0]
        found = ours(model, tokens)
        some = ours(model, tokens, torch.tensor([7, length - 1]))
    assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()
    torch.testing.assert_close(some, found[[7, length - 1]], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_equal_the_reference(tmp_path: Path, family: str) -> None:
    assert_same_logits(make_tiny_base(tmp_path / family, family))


def change_config(base: BaseWeights, **fields: object) -> BaseWeights:
    path = Path(base.folder) / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    return base


LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}


@pytest.mark.parametrize(
    ("family", "fields"),
    [
        ("llama", {"rope_scaling": {"rope_type": "llama3", **LLAMA3}}),
        ("llama", {"rope_parameters": {"rope_type": "llama3", "rope_theta": 5000.0, **LLAMA3}}),
        ("llama", {"rope_scaling": {"rope_type": "linear", "factor": 4.0}}),
        ("mistral", {"sliding_window": 8}),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}),
        ("gemma3", {"rope_scaling": {"rope_type": "linear", "factor": 8.0}}),
    ],
)
def test_logits_equal_the_reference_with_scaled_positions_and_windows(
    tmp_path: Path, family: str, fields: dict[str, object]
) -> None:
    assert_same_logits(change_config(make_tiny_base(tmp_path / family, family), **fields))


@pytest.mark.real_base
def test_logits_equal_the_reference_on_the_small_base(real_base: BaseWeights) -> None:
    assert_same_logits(real_base, length=64)
