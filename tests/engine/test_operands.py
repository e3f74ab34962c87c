"""No product reads memory that nobody wrote: the same numbers when all such memory is NaN, on any processor."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sarto.contract.common import BaseWeights
from sarto.engine.models.decoder import GROUPS, Decoder
from sarto.engine.models.load import load_base
from sarto.engine.models.lora import make_room
from sarto.engine.ops.eager_kernels import EagerKernels
from sarto.engine.ops.fused import FusedOperations
from sarto.engine.ops.library import find_library
from sarto.engine.ops.native import CompiledKernels
from sarto.engine.ops.operands import beside, bordered, roomy, whole
from sarto.engine.ops.quantised import Quantisation
from sarto.engine.ops.reference import Operations, PlainOperations
from sarto.engine.ops.select import choose_operations
from sarto.engine.serving.adapter_pool import ResidentAdapters
from sarto.engine.serving.kv_cache import CacheShape, Lane
from sarto.engine.serving.linear import Choice, Products, ServingProducts
from sarto.engine.serving.linear_panels import choose_products
from sarto.engine.serving.parity import certify
from sarto.engine.serving.runner import PromptChunk, Row, Runner
from sarto.engine.tuning.session import Session
from tests.engine.operands import LookBehind, fresh_memory, no_warnings
from tests.engine.tuning.conftest import make_parameters, make_rows, make_spec
from tests.engine.tuning.test_learning import run
from tests.parity.test_parity import rows as example_rows
from tests.serving.making import make_adapter
from tests.tiny import make_tiny_base

pytestmark = no_warnings
CPU = torch.device("cpu")
BASES = pytest.mark.parametrize("kind", [None, "int8", "nf4"])


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> BaseWeights:
    return make_tiny_base(tmp_path_factory.mktemp("base") / "tiny")


def quantised(base: BaseWeights, kind: Quantisation | None) -> BaseWeights:
    return base.model_copy(update={"quantisation": kind, "digest": f"{base.digest}-{kind}"}) if kind else base


def sets() -> list[Operations]:
    library = find_library()
    found: list[Operations] = [PlainOperations(), FusedOperations(EagerKernels())]
    return [*found, FusedOperations(CompiledKernels(library))] if library else found


def poison_rooms(decoder: Decoder) -> None:
    """What a larger adapter of a run that diverged leaves in memory that runs share."""
    for index in range(decoder.config.layers):
        for group in GROUPS:
            projection = decoder.layer(index).projection(group)
            room = getattr(projection.matrix, "room", None)
            if room is not None:
                room[projection.outputs :] = math.nan
                room[:, projection.inputs :] = math.nan


def training(
    base: BaseWeights, folder: Path, *, poisoned: bool, rank: int, ops: Operations | None = None
) -> list[Tensor]:
    """Losses of some steps, a validation, a certificate, and the adapter, of one small run."""
    decoder = load_base(base, torch.bfloat16)
    decoder.ops = ops or choose_operations(CPU)
    make_room(decoder)
    if poisoned:
        poison_rooms(decoder)
    spec = make_spec(base, folder, dtype="bfloat16")
    with fresh_memory(poisoned), LookBehind() as behind:
        rows = make_rows(8, longest=60)
        session = Session(spec, make_parameters(rank=rank, epoch_count=3), rows, make_rows(4, seed=1), decoder)
        base_losses = session.base_losses()
        assert base_losses is not None
        checkpointing, progress = run(session, spec)
        adapter = Path(spec.run_folder) / checkpointing.checkpoints[-1].folder
        found = certify(base, adapter, example_rows(3), session.logits, dtype=torch.bfloat16, device=CPU, lent=decoder)
    assert behind.apart > 100 or isinstance(ops, PlainOperations)
    steps = [line.step for line in progress if line.step is not None]
    checks = [line.evaluation for line in progress if line.evaluation is not None]
    assert steps and checks
    return [
        torch.tensor([(step.loss, step.gradient_norm) for step in steps]),
        torch.tensor([check.loss for check in checks] + list(base_losses)),
        torch.tensor([found.mean_kl_nats, found.max_logit_difference, found.max_logit]),
        session.adapter.values.clone(),
    ]


def assert_same(poisoned: list[Tensor], clean: list[Tensor]) -> None:
    for one, other in zip(poisoned, clean, strict=True):
        assert torch.isfinite(one).all() and torch.equal(one, other)


@pytest.mark.parametrize("ops", sets(), ids=lambda ops: ops.name)
@pytest.mark.parametrize("rank", [1, 4, 32])
def test_training_validation_and_certificates_have_the_same_numbers_in_poisoned_memory(
    base: BaseWeights, tmp_path: Path, rank: int, ops: Operations
) -> None:
    clean = training(base, tmp_path / "clean", poisoned=False, rank=rank, ops=ops)
    assert_same(training(base, tmp_path / "poisoned", poisoned=True, rank=rank, ops=ops), clean)


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_a_quantised_base_has_the_same_numbers_in_poisoned_memory(
    base: BaseWeights, tmp_path: Path, kind: Quantisation
) -> None:
    packed = quantised(base, kind)
    clean = training(packed, tmp_path / "clean", poisoned=False, rank=4)
    assert_same(training(packed, tmp_path / "poisoned", poisoned=True, rank=4), clean)


@BASES
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_mixed_adapters_are_answered_the_same_in_poisoned_memory(
    base: BaseWeights, tmp_path: Path, dtype: torch.dtype, kind: Quantisation | None
) -> None:
    packed = quantised(base, kind)
    keys = [make_adapter(base, tmp_path / str(n), rank=rank, seed=n) for n, rank in enumerate((2, 8, 30, 4))]
    prompts = [list(range(1, 3 + 17 * n)) for n in range(1, 6)]

    def answers(poisoned: bool) -> list[Tensor]:
        """Logits of all prompts in one step of the model, then of three tokens for each."""
        with fresh_memory(poisoned), LookBehind(), torch.inference_mode():
            runner = Runner(packed, dtype, CPU, adapter_limit=4, prefix_bytes=1 << 20)
            choices = [*(runner.adapters.acquire(key, None) for key in keys), None]
            lanes = [runner.open(prompt, "")[0] for prompt in prompts]
            parts = zip(lanes, prompts, choices, strict=True)
            found = [runner.step([PromptChunk(lane, each, 0, len(each), choice) for lane, each, choice in parts])]
            rows = [Row([*prompt, 7], choice) for prompt, choice in zip(prompts, choices, strict=True)]
            for row, lane in zip(rows, lanes, strict=True):
                runner.join(row, lane)
            for _ in range(3):
                found.append(runner.step([]))
                for row in rows:
                    row.tokens.append(9)
        return found

    assert_same(answers(True), answers(False))


@pytest.mark.parametrize("make", [Products, choose_products], ids=["torch", "chosen"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_serving_products_of_every_group_have_nothing_unwritten_behind_their_operands(
    base: BaseWeights, tmp_path: Path, make: Callable[[Decoder], ServingProducts], dtype: torch.dtype
) -> None:
    keys = [make_adapter(base, tmp_path / str(n), rank=rank, seed=n) for n, rank in enumerate((4, 16, 4))]

    def answers(poisoned: bool) -> list[Tensor]:
        with fresh_memory(poisoned), torch.inference_mode(), LookBehind():
            decoder = load_base(base, dtype)
            decoder.ops = choose_operations(CPU)
            products = make(decoder)
            resident = ResidentAdapters(decoder, products, 3)
            a, b, c = (resident.acquire(key, None) for key in keys)
            rows: list[Choice] = [a, None, b, c, a]
            adapters = products.adapters(rows, [(13, b), (4, None)], rows)
            layer, count, found = 0, 22, []
            for group in GROUPS:
                projection = decoder.layer(layer).projection(group)
                x = roomy(decoder.embedding, count, projection.inputs)
                x.copy_(torch.randn(x.shape, generator=torch.Generator().manual_seed(3)))
                found.append(adapters.project(layer, group, x, projection))
            found.append(products.logits(torch.ones(3, decoder.config.width, dtype=dtype)))
        return found

    assert_same(answers(True), answers(False))


def test_what_a_sequence_left_in_its_slot_does_not_reach_the_next() -> None:
    lane = Lane(CacheShape(2, 2, 8, torch.bfloat16, CPU), 64, slots=2)
    spoiled = torch.full((2, 2, 2, 60, 8), math.nan, dtype=torch.bfloat16)
    lane.take(spoiled, 60)
    lane.take(torch.ones_like(spoiled), 60)
    lane.drop(0)
    assert lane.take(torch.ones_like(spoiled), 5) == 1
    assert torch.isfinite(lane.block).all()
    assert not lane.content(1)[:, :, :, 5:].any()


def test_looking_behind_finds_each_way_in_which_memory_is_not_written() -> None:
    """Faults planted as the engine once had them."""
    weight = torch.ones(8, 584, dtype=torch.bfloat16)
    with fresh_memory(True), LookBehind() as behind:
        free = weight.new_empty(31, 584 + 64)[:, :584].fill_(1)
        with pytest.raises(AssertionError, match="NaN or infinity behind"):
            torch.mm(free, weight.t())
        with pytest.raises(AssertionError, match="NaN or infinity behind"), torch.inference_mode():
            torch.nn.functional.linear(free, weight)
        with pytest.raises(AssertionError, match="NaN or infinity behind"):
            torch.mm(free[:8].t(), weight)
        with pytest.raises(AssertionError, match="where its memory ends"):
            torch.mm(torch.ones(31, 592)[:, 8:], torch.ones(584, 8))
        with pytest.raises(AssertionError, match="where its memory ends"):
            torch.bmm(torch.ones(5, 3, 8).transpose(0, 1), torch.ones(3, 8, 4))
        x = roomy(weight, 31, 576).fill_(1)
        torch.mm(x, weight[:, :576].t())
        torch.mm(beside(x, 8), bordered(weight[:, :576], 8)[:8].t())
        torch.mm(whole(torch.ones(31, 592)[:, 8:]), torch.ones(584, 8))
        torch.mm(free[:, :576], weight[:, :576].t())  # its rows end at a whole block
    assert behind.apart > 4
