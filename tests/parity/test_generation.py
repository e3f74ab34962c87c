"""What serving generates is what transformers with peft generates: same tokens, same probabilities, in every family,
with different adapters side by side in one batch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from sarto.contract.common import BaseWeights
from sarto.engine.rendering.tokenizer import ChatTokenizer
from sarto.engine.serving.adapter_pool import AdapterKey
from sarto.engine.serving.request import prompt_tokens
from sarto.engine.serving.runner import PromptChunk, Row, Runner
from sarto.schema.generation import CountTokensRequest
from tests.serving.making import make_adapter, request, running_engine, tokens_of
from tests.tiny import make_tiny_base

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # between those two packages
FAMILIES = ["llama", "mistral", "qwen2", "qwen3", "gemma3"]
PROMPTS = 24
WORDS = "the sea is wide and cold, but Zoë sails it with a red boat at 7 o'clock; who would not? ünï∂ ok".split()


def prompt(number: int) -> str:
    """Prompts of very different lengths, two of which share a long beginning."""
    words = [WORDS[(number * 7 + step * (number + 3)) % len(WORDS)] for step in range(3 + (number * 5) % 31)]
    return ("Sort these words by length and say them aloud: " if number % 4 == 0 else "") + " ".join(words)


def make_adapters(base: BaseWeights, folder: Path) -> list[AdapterKey | None]:
    """The base alone, and adapters of different rank, of which one leaves projections out."""
    return [
        None,
        make_adapter(base, folder / "a", rank=4, seed=1),
        make_adapter(base, folder / "b", rank=12, seed=2),
        make_adapter(base, folder / "c", rank=8, targets=["q_proj", "v_proj", "down_proj"], seed=3),
    ]


class Reference:
    """transformers with peft, one prompt at a time."""

    def __init__(self, base: BaseWeights, adapters: list[AdapterKey | None]) -> None:
        model = AutoModelForCausalLM.from_pretrained(base.folder, dtype=torch.float32, attn_implementation="eager")
        first, *others = [key for key in adapters if key is not None]
        self.model = PeftModel.from_pretrained(model, first.folder, adapter_name=first.digest)
        for key in others:
            self.model.load_adapter(key.folder, adapter_name=key.digest)
        self.model.eval()
        self.tokenizer = ChatTokenizer.load(base.folder)

    def logits(self, tokens: list[int], key: AdapterKey | None) -> torch.Tensor:
        """(T, V)"""
        with torch.no_grad():
            if key is None:
                with self.model.disable_adapter():
                    return self.model(input_ids=torch.tensor([tokens])).logits[0]
            self.model.set_adapter(key.digest)
            return self.model(input_ids=torch.tensor([tokens])).logits[0]

    def generate(self, text: str, key: AdapterKey | None, count: int) -> list[tuple[int, float]]:
        """Greedy (token, log probability), without the end-of-turn token."""
        asked = CountTokensRequest.read({"contents": [{"role": "user", "parts": [{"text": text}]}]})
        tokens = prompt_tokens(asked, self.tokenizer)[1]
        found: list[tuple[int, float]] = []
        while len(found) < count:
            logprobs = self.logits(tokens, key)[-1].log_softmax(-1)
            token = int(logprobs.argmax())
            if token in self.tokenizer.end_of_turn_ids:
                break
            found.append((token, float(logprobs[token])))
            tokens = [*tokens, token]
        return found


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_answers_equal_the_reference_batched_and_one_by_one(tmp_path: Path, family: str) -> None:
    base = make_tiny_base(tmp_path / family, family)
    adapters = make_adapters(base, tmp_path)
    reference = Reference(base, adapters)
    asked = [(prompt(number), adapters[number % len(adapters)]) for number in range(PROMPTS)]
    with running_engine() as asker:
        sent = [asker.send(base, request(text, maxOutputTokens=10, responseLogprobs=True), key) for text, key in asked]
        together = [tokens_of(chunks) for chunks in asker.wait(sent).values()]
        alone = [tokens_of(asker.ask(base, request(text, maxOutputTokens=10, responseLogprobs=True), key))
                 for text, key in asked[:8]]  # fmt: skip
    for one, many in zip(alone, together, strict=False):
        assert [token for token, _ in one] == [token for token, _ in many]
        assert [p for _, p in one] == pytest.approx([p for _, p in many], abs=5e-5)
    for (text, key), found in zip(asked, together, strict=True):
        expected = reference.generate(text, key, 10)
        assert [token for token, _ in found] == [token for token, _ in expected], text
        assert [p for _, p in found] == pytest.approx([p for _, p in expected], abs=5e-5)  # 1e-5 of the logits


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_equal_the_reference_through_chunks_lanes_and_mixed_steps(tmp_path: Path, family: str) -> None:
    base = make_tiny_base(tmp_path / family, family)
    adapters = make_adapters(base, tmp_path)
    reference = Reference(base, adapters)
    runner = Runner(base, torch.float32, torch.device("cpu"), adapter_limit=8, prefix_bytes=2**20)
    choices = [None if key is None else runner.adapters.acquire(key, None) for key in adapters]
    generator = torch.Generator().manual_seed(5)
    texts = [torch.randint(0, 256, (length,), generator=generator).tolist() for length in (100, 61, 130, 40)]
    rows: list[Row] = []
    found: dict[int, list[torch.Tensor]] = {}
    with torch.inference_mode():
        for tokens, choice in zip(texts, choices, strict=True):  # each prompt in chunks, while earlier rows decode
            lane, known = runner.open(tokens[:30], "")
            assert known == 0
            for start in range(0, 30, 12):
                chunk = PromptChunk(lane, tokens[:30], start, min(12, 30 - start), choice)
                decode(runner, [chunk], rows, texts, found)
            row = Row(tokens[:31], choice)
            rows.append(row)
            runner.join(row, lane)
        while any(len(row.tokens) < len(tokens) for row, tokens in zip(rows, texts, strict=True)):
            decode(runner, [], rows, texts, found)
    for number, (tokens, key) in enumerate(zip(texts, adapters, strict=True)):
        expected = reference.logits(tokens, key)
        assert len(found[number]) > len(tokens) - 35
        for place, logits in enumerate(found[number], start=30):
            assert (logits - expected[place]).abs().max() <= 1e-5 * expected.abs().max()


def decode(
    runner: Runner,
    chunks: list[PromptChunk],
    rows: list[Row],
    texts: list[list[int]],
    found: dict[int, list[torch.Tensor]],
) -> None:
    """One step that feeds every row the next token of its own text."""
    logits = runner.step(chunks)
    order = runner.rows()
    for row, line in zip(order, logits, strict=False):
        number = rows.index(row)
        found.setdefault(number, []).append(line.clone())
        if len(row.tokens) < len(texts[number]):
            row.tokens.append(texts[number][len(row.tokens)])
        else:
            runner.leave(row)
