"""Small tunings by rewards of the tiny base, in process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from sarto.contract.common import BaseWeights, ReinforcementParameters, TuningParameters
from sarto.contract.tuning_run import RunSpec
from sarto.engine.models.decoder import Decoder
from sarto.engine.models.lora import LoraAdapter
from sarto.engine.models.trainable import Trainable
from sarto.engine.reinforcement.sampler import PolicySampler, Request
from sarto.engine.rendering.tokenizer import ChatTokenizer
from sarto.engine.tuning.methods.reinforcement import Answer, Sampled
from sarto.engine.tuning.packing import TokenizedExample
from sarto.engine.tuning.session import Session, TokenisedDataset
from tests.engine.tuning.conftest import MemoryExamples, make_parameters, make_spec
from tests.tiny import make_tiny_base

Score = Callable[[list[int]], float | None]


class SimpleRollout:
    """Answers of the serving engine with rewards by a function of their tokens."""

    def __init__(self, sampler: PolicySampler, score: Score, samples: int, tokens: int) -> None:
        self.sampler, self.score, self.samples, self.tokens = sampler, score, samples, tokens
        self.last: Sampled | None = None

    def sample(self, number: int, prompts: Sequence[TokenizedExample]) -> Sampled:
        requests = [
            Request(prompt.tokens.tolist(), self.tokens, self.samples, 1000 * number + place)
            for place, prompt in enumerate(prompts)
        ]
        groups = [
            [Answer(text.tokens, text.logprobs, text.is_cut, self.score(text.tokens)) for text in group]
            for group in self.sampler.answers(requests)
        ]
        known = [answer.reward for group in groups for answer in group if answer.reward is not None]
        self.last = Sampled(groups, {"reward": float(np.mean(known))})
        return self.last

    def evaluate(self, number: int, prompts: Sequence[TokenizedExample]) -> dict[str, float]:
        sampled = self.sample(10_000 + number, prompts)
        return {"reward": sampled.measured["reward"]}

    def forget(self, completed: int) -> None:
        pass


def make_prompts(count: int = 16, seed: int = 0) -> TokenisedDataset:
    """Prompts that begin alike, as with one system instruction."""
    random, shared = np.random.default_rng(seed), np.arange(40, 45)
    rows = []
    for index in range(count):
        tokens = np.concatenate([shared, random.integers(0, 256, random.integers(1, 8))]).astype(np.uint32)
        rows.append(TokenizedExample(tokens, np.zeros(len(tokens), bool), index + 1))
    return TokenisedDataset(MemoryExamples(rows), np.array([len(row.tokens) for row in rows]), f"prompts-{seed}")


def rewarded_spec(base: BaseWeights, folder: Path, kl_weight: float = 0.01, **fields: object) -> RunSpec:
    sampling = ReinforcementParameters(reward={}, kl_weight=kl_weight)
    parameters = TuningParameters(rank=4, alpha=8.0, reinforcement=sampling)
    own = {"method": "reinforcement", "data_format": "reinforcement", "parameters": parameters}
    return make_spec(base, folder, **(own | fields))


def rewarded_session(spec: RunSpec, score: Score, *, steps: int = 10, tokens: int = 6, rate: float = 1e-3) -> Session:
    parameters = make_parameters(
        batch_size=8, samples_per_prompt=8, max_output_tokens=tokens, evaluate_interval=steps,
        checkpoint_interval=steps, total_steps=steps, learning_rate=rate,
    )  # fmt: skip

    def make(decoder: Decoder, adapter: Trainable) -> SimpleRollout:
        assert isinstance(adapter, LoraAdapter)
        sampler = PolicySampler(spec.base, decoder, adapter, ChatTokenizer.load(spec.base.folder))
        return SimpleRollout(sampler, score, 8, tokens)

    return Session(spec, parameters, make_prompts(), make_prompts(8, seed=1), rollout=make)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> BaseWeights:
    return make_tiny_base(tmp_path_factory.mktemp("base") / "tiny")
