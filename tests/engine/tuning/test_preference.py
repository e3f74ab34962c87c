"""Preference tuning: its loss by hand-computed values, what it compares with, and that no cut changes the learning."""

from __future__ import annotations

import hashlib
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from sarto.contract.common import BaseWeights, TuningParameters
from sarto.contract.tuning_run import RunSpec
from sarto.engine.ops.segments import Segments
from sarto.engine.tuning.checkpointing import Checkpointing
from sarto.engine.tuning.memory_plan import LADDER
from sarto.engine.tuning.methods.preference import ROWS, log_probabilities, pair_losses
from sarto.engine.tuning.methods.references import ReferencedRows
from sarto.engine.tuning.packing import TokenizedExample, plan, take
from sarto.engine.tuning.session import Session, TokenisedDataset
from sarto.errors import InvalidArgument
from tests.engine.operands import LookBehind, fresh_memory, no_warnings
from tests.engine.tuning.conftest import MemoryExamples, make_parameters, make_rows, make_spec
from tests.engine.tuning.test_learning import losses, run

LN2 = math.log(2)


def make_pairs(count: int = 8, seed: int = 0, prompt_tokens: int = 12) -> TokenisedDataset:
    """Prompts that begin alike; preferred replies are of a few small tokens, the others of a few large ones."""
    random = np.random.default_rng(seed)
    shared, rows = random.integers(0, 256, 6), []
    for index in range(count):
        own = random.integers(0, 256, random.integers(1, prompt_tokens))
        for replies in (
            random.integers(0, 4, random.integers(1, 6)),
            random.integers(200, 204, random.integers(2, 9)),
        ):
            tokens = np.concatenate([shared, own, replies, [258]]).astype(np.uint32)
            mask = np.arange(len(tokens)) >= len(shared) + len(own)
            rows.append(TokenizedExample(tokens, mask, index + 1))
    return TokenisedDataset(MemoryExamples(rows), np.array([len(row.tokens) for row in rows]), f"pairs-{seed}-{count}")


def swapped(pairs: TokenisedDataset) -> TokenisedDataset:
    rows = take(pairs.examples, [at ^ 1 for at in range(len(pairs.examples))])
    return TokenisedDataset(
        MemoryExamples(rows), np.array([len(row.tokens) for row in rows]), f"{pairs.digest} swapped"
    )


def preference_spec(base: BaseWeights, folder: Path, beta: float | None = 0.1, **fields: object) -> RunSpec:
    parameters = TuningParameters(rank=4, alpha=8.0, beta=beta)
    given = {"method": "preference", "data_format": "preference", "parameters": parameters}
    return make_spec(base, folder, **(given | fields))


def learnt(base: BaseWeights, folder: Path, **fields: object) -> Path:
    """The folder of an adapter that some steps have moved."""
    spec = make_spec(base, folder, **fields)
    checkpointing, _ = run(Session(spec, make_parameters(epoch_count=10), make_rows(8, seed=5), None), spec)
    return Path(spec.run_folder) / checkpointing.checkpoints[-1].folder


@pytest.mark.parametrize(
    ("values", "beta", "smoothing", "loss", "slope"),
    [
        ((-12, -15, -13, -14), 0.1, 0.0, 0.598139, -0.045017),
        ((-12, -15, -13, -14), 0.5, 0.0, 0.313262, -0.134471),
        ((-12, -15, -13, -14), 0.1, 0.1, 0.618139, -0.035017),
        ((-12, -15, -12, -15), 0.1, 0.0, 0.693147, -0.05),
    ],
)
def test_the_loss_and_its_slope_have_the_values_of_the_paper(
    values: tuple[float, ...], beta: float, smoothing: float, loss: float, slope: float
) -> None:
    found = torch.tensor([values[:2]], dtype=torch.float64, requires_grad=True)
    losses, margins = pair_losses(found, torch.tensor([values[2:]], dtype=torch.float64), beta, smoothing)
    losses.sum().backward()
    assert losses.item() == pytest.approx(loss, abs=5e-7)
    assert found.grad is not None
    assert found.grad[0].tolist() == pytest.approx([slope, -slope], abs=5e-7)
    assert margins.item() == pytest.approx(beta * ((values[0] - values[2]) - (values[1] - values[3])))


@pytest.mark.parametrize("start", ["fresh", "continued", "continued from pairs"])
def test_the_first_step_finds_no_difference_to_the_model_that_the_job_began_with(
    tiny: BaseWeights, tmp_path: Path, start: str
) -> None:
    fields: dict[str, object] = {}
    if start != "fresh":
        fields["parent_adapter"] = str(learnt(tiny, tmp_path / "parent"))
    if start == "continued from pairs":
        spec = preference_spec(tiny, tmp_path / "pairs", **fields)
        checkpointing, _ = run(Session(spec, make_parameters(epoch_count=4), make_pairs(8, seed=3), None), spec)
        fields["parent_adapter"] = str(Path(spec.run_folder) / checkpointing.checkpoints[-1].folder)
    spec = preference_spec(tiny, tmp_path / "run", **fields)
    _, progress = run(Session(spec, make_parameters(epoch_count=8), make_pairs(12), make_pairs(6, seed=1)), spec)
    steps = [line.step for line in progress if line.step]
    first, last = steps[0], steps[-1]
    assert first.loss == pytest.approx(LN2, abs=1e-4)
    assert first.margin is not None and abs(first.margin) < 1e-3
    assert first.supervised_tokens == 4  # pairs
    assert first.chosen_logp is not None and first.chosen_logp < 0 and first.rejected_logp is not None
    assert last.loss < first.loss and last.accuracy == 1.0 and last.margin is not None and last.margin > 0.01
    evaluated = [line.evaluation for line in progress if line.evaluation]
    assert evaluated[-1].supervised_tokens == 6
    assert evaluated[-1].margin is not None and evaluated[-1].loss < LN2


def test_a_continued_job_is_compared_with_its_start_and_not_with_the_base(tiny: BaseWeights, tmp_path: Path) -> None:
    parent = str(learnt(tiny, tmp_path / "parent"))
    pairs = make_pairs(8)
    found = []
    for name, fields in (("fresh", {}), ("continued", {"parent_adapter": parent})):
        session = Session(preference_spec(tiny, tmp_path / name, **fields), make_parameters(), pairs, None)
        found.append([session.training.examples.reference(row) for row in range(16)])
    assert np.abs(np.subtract(*found)).min() > 1e-3


def test_swapped_scores_negate_the_margin(tiny: BaseWeights, tmp_path: Path) -> None:
    pairs = make_pairs(8)
    spec = preference_spec(tiny, tmp_path / "run")
    session = Session(spec, make_parameters(epoch_count=4), pairs, swapped(pairs))
    run(session, spec)
    assert session.validation is not None
    ours, theirs = (session.trainer.evaluate(each.examples).measured for each in (session.training, session.validation))
    assert ours["margin"] == pytest.approx(-theirs["margin"], rel=1e-6)
    assert ours["accuracy"] + theirs["accuracy"] == 1
    assert ours["chosen_logp"] == pytest.approx(theirs["rejected_logp"], rel=1e-9)


def test_with_a_beta_of_zero_no_weight_changes(tiny: BaseWeights, tmp_path: Path) -> None:
    spec = preference_spec(tiny, tmp_path / "run", beta=0.0)
    session = Session(spec, make_parameters(epoch_count=3), make_pairs(8), None)
    before = session.adapter.values.clone()
    _, progress = run(session, spec)
    assert torch.equal(session.adapter.values, before)
    assert all(line.step.loss == pytest.approx(LN2, abs=1e-9) for line in progress if line.step)


def test_a_run_without_a_beta_is_refused(tiny: BaseWeights, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="beta"):
        Session(preference_spec(tiny, tmp_path, beta=None), make_parameters(), make_pairs(4), None)


def trained(base: BaseWeights, folder: Path, pairs: TokenisedDataset, dtype: str = "float32") -> Session:
    """A session some steps after its start, where pairs differ in their losses."""
    spec = preference_spec(base, folder, dtype=dtype)
    session = Session(spec, make_parameters(epoch_count=3), pairs, None)
    run(session, spec)
    return session


def test_batches_padding_packing_and_recomputation_change_no_loss_and_no_gradient(
    tiny: BaseWeights, tmp_path: Path
) -> None:
    pairs = make_pairs(8, prompt_tokens=70)
    session = trained(tiny, tmp_path / "run", pairs)
    rows = take(session.training.examples, range(16))
    found: dict[str, tuple[list[float], torch.Tensor]] = {}
    cuts = {
        "alone": ([rows[at : at + 2] for at in range(0, 16, 2)], LADDER[0], True),
        "alone, prompts twice": ([rows[at : at + 2] for at in range(0, 16, 2)], LADDER[0], False),
        "all at once": ([rows], LADDER[0], True),
        "all at once, prompts twice": ([rows], LADDER[0], False),
        "in small batches": ([rows], replace(LADDER[0], token_budget=40), True),
        "layers computed twice": ([rows], LADDER[-1], True),
    }
    for name, (parts, memory, share) in cuts.items():
        session.adapter.gradients.zero_()
        losses = [0.0] * 8
        for part in parts:
            for batch in plan(part, memory.token_budget, per_example=ROWS, share_prefixes=share):
                found_here = log_probabilities(session.decoder, session.adapter, memory, batch)
                each, _ = pair_losses(found_here.view(-1, 2), batch.references.view(-1, 2), 0.1)
                each.sum().backward()
                for loss, number in zip(each.tolist(), batch.numbers[::2], strict=True):
                    losses[part[number].line - 1] = loss
        found[name] = losses, session.adapter.gradients.clone()
    expected, gradient = found["alone, prompts twice"]
    assert min(abs(loss - LN2) for loss in expected) > 1e-4
    for name, (losses, theirs) in found.items():
        assert losses == pytest.approx(expected, abs=1e-5), name
        assert (theirs - gradient).norm() < 1e-5 * gradient.norm(), name


def test_a_prompt_is_computed_once_for_both_completions() -> None:
    pairs = make_pairs(1, prompt_tokens=30)
    rows = take(pairs.examples, range(2))
    (batch,) = plan(rows, 1000, per_example=ROWS)
    prompt = int((~rows[0].loss_mask).sum())
    answers = sum(int(row.loss_mask.sum()) - 1 for row in rows)  # the last token of each is a target only
    assert len(batch.tokens) == prompt + answers
    assert batch.rendered_tokens == 2 * prompt + answers + 2


def test_attention_computes_the_queries_of_a_shared_prompt_once() -> None:
    random, rows = np.random.default_rng(0), []
    for line in range(6):
        prompt = random.integers(0, 256, 150)
        for reply in (random.integers(0, 256, 20), random.integers(0, 256, 30)):
            tokens = np.concatenate([prompt, reply]).astype(np.uint32)
            rows.append(TokenizedExample(tokens, np.arange(len(tokens)) >= 150, line))
    (batch,) = plan(rows, 2000, per_example=ROWS)
    grids = Segments.of(batch.grids, len(batch.tokens)).grids
    assert sum(grid.count for grid in grids) == 12
    queries = sum(grid.count * (grid.length - grid.skip) for grid in grids)
    assert len(batch.tokens) <= queries < 1.3 * len(batch.tokens)


def test_a_pair_stays_in_one_batch_however_small() -> None:
    rows = take(make_pairs(9).examples, range(18))
    batches = plan(rows, 1, per_example=ROWS)
    assert [len(batch.numbers) for batch in batches] == [2] * 9
    for batch in batches:
        assert batch.numbers[0] % 2 == 0 and batch.numbers[1] == batch.numbers[0] + 1


def test_gradients_are_finite_differences(tiny: BaseWeights, tmp_path: Path) -> None:
    session = trained(tiny, tmp_path / "run", make_pairs(4))
    rows, values = take(session.training.examples, range(8)), session.adapter.values
    trainer, memory = session.trainer, LADDER[0]

    def loss() -> float:
        batches = trainer.method.plan(rows, memory.token_budget)
        with torch.no_grad():
            return sum(float(trainer.loss(batch, memory)[0]) for batch in batches) / 4

    trainer.gradients(rows)
    gradients = session.adapter.gradients.clone()
    for index in gradients.abs().topk(20).indices.tolist():
        before, step = float(values[index]), 2e-3
        sides = []
        for side in (step, -step):
            values[index] = before + side
            sides.append(loss())
        values[index] = before
        assert (sides[0] - sides[1]) / (2 * step) == pytest.approx(float(gradients[index]), rel=1e-2)


def test_references_are_computed_once_and_found_again_by_the_weights_that_gave_them(
    tiny: BaseWeights, tmp_path: Path
) -> None:
    pairs, words = make_pairs(70), list[str]()
    cache = {"cache_folder": str(tmp_path / "cache")}

    def session(name: str, **fields: object) -> Session:
        words.clear()
        spec = preference_spec(tiny, tmp_path / name, **(cache | fields))
        return Session(spec, make_parameters(epoch_count=1), pairs, None, say=words.append)

    first = session("first")
    assert words == ["Computing the references of 70 pairs: the model's own values before it is tuned."]
    (kept,) = (tmp_path / "cache").glob("references-*/values")
    content = kept.read_bytes()
    run(first, first.spec)
    again = session("again")
    assert not words
    assert kept.read_bytes() == content
    assert references(again) == references(first)
    parent = {"parent_adapter": str(learnt(tiny, tmp_path / "parent"))}
    assert references(session("continued", **parent)) != references(first)
    assert len(list((tmp_path / "cache").glob("references-*/values"))) == 2
    kept.write_bytes(content[:-1] + b"\x00")  # a bit that flipped on the disk
    assert references(session("damaged")) == references(first)
    assert words and kept.read_bytes() == content


def references(session: Session) -> list[float]:
    examples = session.training.examples
    assert isinstance(examples, ReferencedRows)
    return examples.values.tolist()


def test_references_are_the_log_probabilities_of_the_completions(tiny: BaseWeights, tmp_path: Path) -> None:
    session = Session(preference_spec(tiny, tmp_path), make_parameters(), make_pairs(5), None)
    for row, found in zip(take(session.training.examples, range(10)), references(session), strict=True):
        logits = session.logits(torch.from_numpy(row.tokens.astype(np.int64)))
        every = torch.log_softmax(logits.double(), -1)[:-1].gather(
            1, torch.from_numpy(row.tokens[1:].astype(np.int64))[:, None]
        )
        assert found == pytest.approx(float(every.flatten()[row.loss_mask[1:]].sum()), abs=1e-4)


def test_references_go_on_where_an_attempt_stopped(tiny: BaseWeights, tmp_path: Path) -> None:
    """The same bytes, whether they were computed at once or in two goes."""
    pairs = make_pairs(100)
    whole = Session(preference_spec(tiny, tmp_path / "whole"), make_parameters(), pairs, None)
    (kept,) = (tmp_path / "whole" / "cache").glob("references-*/values")
    resume = tmp_path / "job" / "resume"
    resume.mkdir(parents=True)
    values = np.array(references(whole)[:128], dtype="<f8").tobytes()
    (resume / f"{kept.parent.name}.part").write_bytes(hashlib.sha256(values).digest() + values)
    words: list[str] = []
    spec = preference_spec(tiny, tmp_path / "job", resume_folder=str(resume))
    session = Session(spec, make_parameters(), pairs, None, say=words.append)
    assert "after 64 that an earlier attempt computed" in words[0]
    assert references(session) == references(whole)
    assert not list(resume.iterdir())


def test_a_job_learns_which_reply_is_preferred(tiny: BaseWeights, tmp_path: Path) -> None:
    spec = preference_spec(tiny, tmp_path / "run")
    session = Session(spec, make_parameters(epoch_count=12, rank=4), make_pairs(32), make_pairs(20, seed=9))
    checkpointing, _ = run(session, spec)
    found = checkpointing.checkpoints[-1].evaluation
    assert found is not None and found.accuracy >= 0.9
    assert isinstance(checkpointing, Checkpointing)
    assert session.base_losses() is None  # its loss is about the model that the job began with


@no_warnings
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_preference_tuning_has_the_same_numbers_in_poisoned_memory(
    tiny: BaseWeights, tmp_path: Path, dtype: str
) -> None:
    found = []
    for is_poisoned in (False, True):
        spec = preference_spec(tiny, tmp_path / str(is_poisoned), dtype=dtype)
        with fresh_memory(is_poisoned), LookBehind():
            session = Session(
                spec, make_parameters(epoch_count=2), make_pairs(40, prompt_tokens=60), make_pairs(6), None
            )
            _, progress = run(session, spec)
        found.append((references(session), losses(progress), session.adapter.values.clone()))
    assert found[0][:2] == found[1][:2]
    assert torch.isfinite(found[0][2]).all() and torch.equal(found[0][2], found[1][2])
