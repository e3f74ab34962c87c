"""Full tuning: gradients of all weights equal a stock library's, however a step is cut, and exports open in it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from sarto.contract.common import BaseWeights
from sarto.engine.models.full_weights import FullWeights
from sarto.engine.models.load import load_base
from sarto.engine.ops.eager_kernels import EagerKernels
from sarto.engine.ops.fused import FusedOperations
from sarto.engine.ops.reference import Operations, PlainOperations
from sarto.engine.ops.select import choose_operations
from sarto.engine.tuning.adamw import AdamW
from sarto.engine.tuning.checkpoint_files import export
from sarto.engine.tuning.methods.supervised import batch_loss
from sarto.engine.tuning.packing import MemoryPlan, TokenizedExample, plan
from sarto.engine.tuning.segment_attention import SegmentAttention
from sarto.engine.weights.starting_weights import read_weights
from tests.parity.test_decoder_training import ALL, assert_same_gradients, make_examples
from tests.tiny import make_tiny_base

FAMILIES = ["llama", "mistral", "qwen2", "qwen3", "gemma3"]
CPU = torch.device("cpu")


def full_weights(
    base: BaseWeights, ops: Operations | None = None, dtype: torch.dtype = torch.float32
) -> tuple[FullWeights, Loss]:
    decoder = load_base(base, dtype)
    decoder.ops = ops or FusedOperations(EagerKernels())
    weights = FullWeights(decoder)
    read_weights(weights, base)
    return weights, Loss(decoder, weights)


class Loss:
    """The mean loss of examples, with gradients in the weights' vector."""

    def __init__(self, decoder: object, weights: FullWeights) -> None:
        self.decoder, self.weights = decoder, weights

    def __call__(self, examples: list[TokenizedExample], memory: MemoryPlan = ALL) -> float:
        batches = plan(examples, memory.token_budget)
        total, loss = sum(len(batch.targets) for batch in batches), 0.0
        self.weights.gradients.zero_()
        for batch in batches:
            each, _ = batch_loss(self.decoder, self.weights, batch, memory)  # type: ignore[arg-type]
            (each / total).backward()
            loss += float(each.detach()) / total
        return loss


def gradients(weights: FullWeights) -> dict[str, Tensor]:
    kept = weights.values
    weights.values = weights.gradients  # of the same layout, so the names of the values are theirs
    found = {name: tensor.clone() for name, tensor in weights.named_tensors()}
    weights.values = kept
    return found


def reference_step(base: BaseWeights, examples: list[TokenizedExample]) -> tuple[float, dict[str, Tensor]]:
    model = AutoModelForCausalLM.from_pretrained(base.folder, dtype=torch.float32, attn_implementation="eager")
    total = sum(int(example.loss_mask[1:].sum()) for example in examples)
    loss = torch.zeros(())
    for example in examples:
        tokens = torch.from_numpy(example.tokens.astype(np.int64))
        labels = torch.where(torch.from_numpy(example.loss_mask), tokens, -100)
        logits = model(input_ids=tokens[None]).logits[0]
        loss = loss + torch.nn.functional.cross_entropy(logits[:-1], labels[1:], reduction="sum") / total
    loss.backward()
    return loss.item(), {name: weight.grad for name, weight in model.named_parameters()}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "ops", [PlainOperations(), FusedOperations(EagerKernels()), choose_operations(CPU)], ids=lambda ops: ops.name
)
def test_loss_and_gradients_of_all_weights_equal_a_stock_librarys(tmp_path: Path, family: str, ops: Operations) -> None:
    base, examples = make_tiny_base(tmp_path / "base", family), make_examples()
    weights, loss = full_weights(base, ops)
    found = loss(examples)
    expected_loss, expected = reference_step(base, examples)
    assert found == pytest.approx(expected_loss, rel=1e-5)
    assert_same_gradients(gradients(weights), expected)
    for name, gradient in gradients(weights).items():
        assert gradient.abs().sum() > 0, name


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
    weights, loss = full_weights(make_tiny_base(tmp_path / "base"))
    whole_loss = loss(make_examples())
    whole = gradients(weights)
    assert loss(make_examples(), memory) == pytest.approx(whole_loss, rel=1e-6)
    assert_same_gradients(gradients(weights), whole)


def test_bfloat16_gradients_are_near_those_of_float32(tmp_path: Path) -> None:
    base = make_tiny_base(tmp_path / "base")
    weights, loss = full_weights(base)
    rounded, rounded_loss = full_weights(base, choose_operations(CPU), torch.bfloat16)
    assert rounded_loss(make_examples()) == pytest.approx(loss(make_examples()), rel=1e-2)
    assert (rounded.gradients - weights.gradients).norm() <= 3e-2 * weights.gradients.norm()


def test_gradients_equal_finite_differences_on_twenty_weights(tmp_path: Path) -> None:
    weights, loss = full_weights(make_tiny_base(tmp_path / "base"))
    examples = make_examples()
    loss(examples)
    slopes = weights.gradients.clone()
    large = slopes.abs().topk(2000).indices
    chosen = large[torch.randperm(len(large), generator=torch.Generator().manual_seed(0))[:20]]
    for index in chosen.tolist():
        sides, kept = [], float(weights.values[index])
        for move in (1e-2, -1e-2):
            weights.values[index] = kept + move
            weights.refresh()
            sides.append(loss(examples))
        weights.values[index] = kept
        assert (sides[0] - sides[1]) / 2e-2 == pytest.approx(float(slopes[index]), rel=1e-2)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_without_a_step_the_export_has_the_values_of_the_base(tmp_path: Path, family: str, dtype: torch.dtype) -> None:
    base = make_tiny_base(tmp_path / "base", family)
    weights, _ = full_weights(base, dtype=dtype)
    export(weights, tmp_path / "out", base)
    stored, found = load_file(Path(base.folder) / "model.safetensors"), load_file(tmp_path / "out/model.safetensors")
    assert set(found) == set(stored)
    assert all(torch.equal(found[name], stored[name].float()) for name in stored)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_stock_library_opens_the_export_and_computes_our_logits(tmp_path: Path, family: str) -> None:
    base = make_tiny_base(tmp_path / "base", family)
    weights, loss = full_weights(base)
    optimizer = AdamW(weights.values, 0.0)
    for _ in range(3):
        loss(make_examples())
        optimizer.step(weights.gradients, 1e-2)
        weights.refresh()
    export(weights, tmp_path / "out", base)
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert stock.dtype == torch.float32
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.chat_template
    tokens = torch.tensor(tokenizer.encode("Where is my kettle?"))
    again = load_base(BaseWeights(name="out", folder=str(tmp_path / "out"), digest=""), torch.float32)
    trained = weights._decoder
    with torch.no_grad():
        expected = stock(input_ids=tokens[None]).logits[0]
        for decoder in (again, trained):
            attend = SegmentAttention.alone(decoder, len(tokens))
            adapters = weights if decoder is trained else FullWeights(decoder)
            if adapters is not weights:
                read_weights(adapters, BaseWeights(name="out", folder=str(tmp_path / "out"), digest=""))
            found = decoder.logits(decoder(tokens, torch.arange(len(tokens)), attend, adapters))
            assert (found - expected).abs().max() < 1e-3


def test_small_steps_move_every_tensor_and_most_values(tmp_path: Path) -> None:
    base = make_tiny_base(tmp_path / "base")
    weights, loss = full_weights(base, choose_operations(CPU), torch.bfloat16)
    before, rounded = weights.values.clone(), weights._products.clone()
    optimizer = AdamW(weights.values, 0.0)
    for _ in range(10):
        loss(make_examples())
        optimizer.step(weights.gradients, 1e-6)
        weights.refresh()
    used = weights.gradients != 0
    moved = weights.values != before
    assert moved.float().mean() > 0.5
    assert moved[used].float().mean() > 0.9
    at = 0
    for _, tensor in weights.named_tensors():
        assert moved[at : at + tensor.numel()].any()
        at += tensor.numel()
    # weights in bfloat16 lose such steps: ten times the rate is below half a unit of most of them
    assert (weights._products != rounded).float().mean() < 0.1
