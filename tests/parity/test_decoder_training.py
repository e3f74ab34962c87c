"""Our training step equals PEFT's on the same examples: loss and gradients, however the step is cut and packed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM

from sarto.contract.common import BaseWeights
from sarto.engine.models.adapter_shape import AdapterShape
from sarto.engine.models.decoder import Decoder
from sarto.engine.models.load import load_base
from sarto.engine.models.lora import LoraAdapter
from sarto.engine.ops.eager_kernels import EagerKernels
from sarto.engine.ops.fused import FusedOperations
from sarto.engine.ops.reference import Operations, PlainOperations
from sarto.engine.ops.select import choose_operations, native_dtype
from sarto.engine.tuning.adamw import AdamW
from sarto.engine.tuning.methods.supervised import batch_loss
from sarto.engine.tuning.packing import MemoryPlan, TokenizedExample, plan
from sarto.engine.weights.peft import read_adapter, write_adapter
from tests.tiny import make_tiny_base

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
ALL = MemoryPlan(token_budget=10_000)


def make_examples(count: int = 8, seed: int = 3, vocabulary: int = 256) -> list[TokenizedExample]:
    """Two prompts shared by half the examples each, different lengths, tails that nobody learns."""
    random = np.random.default_rng(seed)
    prompts = [random.integers(0, vocabulary, 20) for _ in range(2)]
    found = []
    for index in range(count):
        own, reply, tail = (random.integers(0, vocabulary, n) for n in random.integers(3, 40, 3))
        tokens = np.concatenate([prompts[index % 2], own, reply, tail]).astype(np.uint32)
        mask = np.zeros(len(tokens), dtype=np.bool_)
        mask[20 + len(own) : 20 + len(own) + len(reply)] = True
        found.append(TokenizedExample(tokens, mask, index + 1))
    return found


def make_adapter(decoder: Decoder, seed: int = 0) -> LoraAdapter:
    """With a B that is not zero, so that every gradient has something to say."""
    adapter = LoraAdapter(decoder, AdapterShape(4, 8.0), seed)
    with torch.no_grad():
        for name, tensor in adapter.named_tensors():
            if "lora_B" in name:
                tensor.copy_(torch.randn(tensor.shape, generator=torch.Generator().manual_seed(len(name))) * 0.1)
    return adapter


def our_step(
    base: BaseWeights, examples: list[TokenizedExample], memory: MemoryPlan = ALL, ops: Operations | None = None
) -> tuple[float, dict[str, Tensor]]:
    decoder = load_base(base, torch.float32)
    decoder.ops = ops or FusedOperations(EagerKernels())
    adapter = make_adapter(decoder)
    batches = plan(examples, memory.token_budget)
    total = sum(len(batch.targets) for batch in batches)
    loss = 0.0
    for batch in batches:
        each, _ = batch_loss(decoder, adapter, batch, memory)
        (each / total).backward()
        loss += float(each.detach()) / total
    adapter.values = adapter.gradients  # of the same layout, so the names of the values are theirs
    return loss, {name: tensor.clone() for name, tensor in adapter.named_tensors()}


def reference_step(
    base: BaseWeights, examples: list[TokenizedExample], folder: Path
) -> tuple[float, dict[str, Tensor]]:
    write_adapter(make_adapter(load_base(base, torch.float32)), folder, base.folder)
    model = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base.folder, dtype=torch.float32, attn_implementation="eager"),
        folder,
        is_trainable=True,
    )
    total = sum(int(example.loss_mask[1:].sum()) for example in examples)
    loss = torch.zeros(())
    for example in examples:
        tokens = torch.from_numpy(example.tokens.astype(np.int64))
        labels = torch.where(torch.from_numpy(example.loss_mask), tokens, -100)
        logits = model(input_ids=tokens[None]).logits[0]
        loss = loss + torch.nn.functional.cross_entropy(logits[:-1], labels[1:], reduction="sum") / total
    loss.backward()
    named = {name.replace(".default", ""): p.grad for name, p in model.named_parameters() if p.requires_grad}
    return loss.item(), named


def assert_same_gradients(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 1e-5) -> None:
    assert set(found) == set(expected)
    mine = torch.cat([found[name].flatten() for name in sorted(found)])
    theirs = torch.cat([expected[name].flatten() for name in sorted(found)])
    assert (mine - theirs).norm() <= tolerance * theirs.norm()


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3", "gemma3"])
@pytest.mark.parametrize("ops", [PlainOperations(), FusedOperations(EagerKernels())], ids=["plain", "fused"])
def test_loss_and_gradients_equal_pefts(tmp_path: Path, family: str, ops: Operations) -> None:
    base = make_tiny_base(tmp_path / "base", family)
    examples = make_examples()
    loss, gradients = our_step(base, examples, ops=ops)
    expected_loss, expected = reference_step(base, examples, tmp_path / "adapter")
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    assert_same_gradients(gradients, expected)


@pytest.mark.parametrize(
    "memory",
    [
        MemoryPlan(token_budget=1),
        MemoryPlan(token_budget=150),
        MemoryPlan(token_budget=10_000, keep_attention=False),
        MemoryPlan(token_budget=150, recompute_layers=True),
    ],
)
def test_the_gradient_does_not_depend_on_how_the_step_is_cut(tmp_path: Path, memory: MemoryPlan) -> None:
    base = make_tiny_base(tmp_path / "base")
    loss, gradients = our_step(base, make_examples(), memory)
    whole_loss, whole = our_step(base, make_examples())
    assert loss == pytest.approx(whole_loss, rel=1e-6)
    assert_same_gradients(gradients, whole)


def test_an_adapter_written_by_us_gives_the_same_logits_in_peft_and_comes_back_whole(tmp_path: Path) -> None:
    base = make_tiny_base(tmp_path / "base")
    decoder = load_base(base, torch.float32)
    adapter = make_adapter(decoder)
    write_adapter(adapter, tmp_path / "adapter", base.name)
    peft = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base.folder, dtype=torch.float32), tmp_path / "adapter"
    )
    example = make_examples(1)[0]
    mask = np.ones_like(example.loss_mask)
    batch = plan([TokenizedExample(example.tokens, mask, 1)], 1000)[0]
    ours, right = batch_loss(decoder, adapter, batch, ALL)
    with torch.no_grad():
        logits = peft(input_ids=torch.from_numpy(example.tokens.astype(np.int64))[None]).logits[0]
    expected = torch.nn.functional.cross_entropy(logits[:-1], batch.targets, reduction="sum")
    torch.testing.assert_close(ours.detach(), expected, rtol=1e-5, atol=1e-5)
    assert int(right) == int((logits[:-1].argmax(-1) == batch.targets).sum())
    again = LoraAdapter(load_base(base, torch.float32), AdapterShape(4, 8.0), seed=9)
    again.load(read_adapter(tmp_path / "adapter"))
    assert torch.equal(again.values, adapter.values)


def test_an_adapter_made_by_peft_is_read(tmp_path: Path) -> None:
    base = make_tiny_base(tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(base.folder, dtype=torch.float32)
    get_peft_model(model, LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", "v_proj"])).save_pretrained(
        tmp_path / "adapter"
    )
    file = read_adapter(tmp_path / "adapter")
    adapter = LoraAdapter(load_base(base, torch.float32), file.shape)
    adapter.load(file)
    assert file.shape == AdapterShape(2, 4.0, ("q_proj", "v_proj"))
    assert len(list(adapter.named_tensors())) == len(file.tensors) == 8


@pytest.mark.slow
@pytest.mark.real_base
def test_loss_and_gradients_equal_pefts_on_the_small_base(real_base: BaseWeights, tmp_path: Path) -> None:
    """The bars of the benchmark: 1e-5 for both."""
    examples = make_examples(4, vocabulary=49_000)
    loss, gradients = our_step(real_base, examples, ops=choose_operations(torch.device("cpu")))
    expected_loss, expected = reference_step(real_base, examples, tmp_path / "adapter")
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    assert_same_gradients(gradients, expected)


@pytest.mark.slow
@pytest.mark.real_base
@pytest.mark.skipif(native_dtype(torch.device("cpu")) != torch.bfloat16, reason="no bfloat16 products here")
def test_bfloat16_tracks_float32_on_the_small_base(real_base: BaseWeights) -> None:
    """Five updates on the same examples: losses within 2e-2 of each other."""
    losses = {}
    for dtype in (torch.float32, torch.bfloat16):
        decoder = load_base(real_base, dtype)
        decoder.ops = choose_operations(torch.device("cpu"))
        adapter = LoraAdapter(decoder, AdapterShape(16, 32.0))
        optimizer = AdamW(adapter.values, 0.0)
        losses[dtype] = []
        for step in range(5):
            (batch,) = plan(make_examples(4, seed=step % 2, vocabulary=2000), ALL.token_budget)
            adapter.gradients.zero_()
            loss, _ = batch_loss(decoder, adapter, batch, ALL)
            (loss / len(batch.targets)).backward()
            adapter.gradients.mul_((1.0 / adapter.gradients.norm()).clamp(max=1.0))
            optimizer.step(adapter.gradients, 2e-4)
            losses[dtype].append(float(loss.detach()) / len(batch.targets))
    assert losses[torch.bfloat16] == pytest.approx(losses[torch.float32], abs=2e-2)
    assert losses[torch.float32][4] < losses[torch.float32][0]
