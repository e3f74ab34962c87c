"""The certificate passes what training made and stops what serving would answer differently."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sarto.contract.common import BaseWeights
from sarto.conversations.examples import Example, parse_line
from sarto.engine.models.load import load_base
from sarto.engine.models.lora import LoraAdapter
from sarto.engine.serving.parity import TrainerLogits, certify
from sarto.engine.weights.peft import read_adapter
from sarto.errors import FailedPrecondition
from tests.parity.test_decoder import OneSequence
from tests.serving.making import make_adapter
from tests.tiny import make_tiny_base


def rows(count: int = 6) -> list[Example]:
    found = []
    for number in range(1, count + 1):
        turns = [("user", "a" * number), ("model", "b"), ("user", f"question {number}"), ("model", "answer " * number)]
        contents = [{"role": role, "parts": [{"text": text}]} for role, text in turns]
        found.append(parse_line(json.dumps({"contents": contents}).encode(), number))
    return found


def trainer_of(base: BaseWeights, folder: str, dtype: torch.dtype) -> TrainerLogits:
    """The adapter as training holds it, on the decoder training uses."""
    decoder, file = load_base(base, dtype), read_adapter(Path(folder))
    adapter = LoraAdapter(decoder, file.shape)
    adapter.load(file)

    def logits(tokens: Tensor) -> Tensor:
        with torch.no_grad():
            hidden = decoder(tokens, torch.arange(len(tokens)), OneSequence(decoder.config), adapter)
            return decoder.logits(hidden)

    return logits


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "gemma3"])
def test_what_was_trained_is_what_is_served(tmp_path: Path, family: str, dtype: torch.dtype) -> None:
    base = make_tiny_base(tmp_path / family, family)
    key = make_adapter(base, tmp_path / "adapter")
    trainer = trainer_of(base, key.folder, dtype)
    found = certify(base, Path(key.folder), rows(), trainer, dtype=dtype, device=torch.device("cpu"))
    assert found.passed, found
    assert found.rows == 6
    assert found.reply_tokens > 100
    assert found.mean_kl_nats < (1e-6 if dtype == torch.float32 else 1e-2)


def test_another_adapter_does_not_pass_and_the_numbers_say_by_how_much(tmp_path: Path) -> None:
    base = make_tiny_base(tmp_path / "llama")
    trained, served = make_adapter(base, tmp_path / "a"), make_adapter(base, tmp_path / "b", seed=2)
    trainer = trainer_of(base, trained.folder, torch.bfloat16)
    found = certify(base, Path(served.folder), rows(), trainer, dtype=torch.bfloat16, device=torch.device("cpu"))
    assert not found.passed
    assert found.max_logit_difference > found.tolerance
    assert found.mean_kl_nats > 0.01


def test_a_template_that_changes_between_training_and_serving_is_caught(tmp_path: Path) -> None:
    base = make_tiny_base(tmp_path / "llama")
    key = make_adapter(base, tmp_path / "adapter")
    template = tmp_path / "llama" / "chat_template.jinja"
    # A generation prompt that training never saw, in conversations of three messages only.
    template.write_text(template.read_text() + "{% if add_generation_prompt and messages|length == 3 %}X{% endif %}")
    with pytest.raises(FailedPrecondition, match="line 1: saw a reply that does not start where"):
        certify(base, Path(key.folder), rows(), lambda tokens: torch.zeros(0), dtype=torch.float32,
                device=torch.device("cpu"))  # fmt: skip
