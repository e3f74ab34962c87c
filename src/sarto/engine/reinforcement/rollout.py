"""The answers of a run that learns from rewards, from prompts to rewards. Each step is stored before it is learned."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch

from sarto.engine.dataset.prepare import PreparedDataset
from sarto.engine.reinforcement.findings import Findings, differ
from sarto.engine.reinforcement.prompts import example_of
from sarto.engine.reinforcement.sampler import PolicySampler, Request, Text
from sarto.engine.tuning.methods.reinforcement import Answer, Sampled
from sarto.engine.tuning.packing import TokenizedExample
from sarto.errors import InvalidArgument
from sarto.rewards.reward import Reward
from sarto.rewards.scoring import Outcome, Sample
from sarto.system.failpoints import around
from sarto.system.files import write_whole

MOST_FAILED = 0.8
"""A step in which more rewards fail ends the job."""
SHOWN_ANSWERS, SHOWN_CHARACTERS = 3, 200
VERSION = 1


@dataclass(frozen=True)
class RolloutOptions:
    job: str
    seed: int
    samples: int
    """Answers to each prompt."""
    max_tokens: int
    context: int
    resume_folder: Path | None
    quotes: bool = True
    """Whether events may quote prompts and answers."""


@dataclass(frozen=True)
class Scoring:
    """Texts with their rewards."""

    texts: list[Text]
    words: list[str]
    outcomes: list[Outcome]

    def measured(self) -> dict[str, float]:
        """Fields of StepMetrics and EvalMetrics."""
        known = [outcome.reward for outcome in self.outcomes if outcome.reward is not None]
        waits = [max((part.seconds for part in each.details.values()), default=0.0) for each in self.outcomes]
        seconds = [text.seconds for text in self.texts]
        return {
            "reward": fmean(known) if known else 0.0,
            "generation_length": fmean(len(text.tokens) - (not text.is_cut) for text in self.texts),
            "thinking_length": 0.0,
            "reward_latency": fmean(waits),
            "reward_latency_p95": float(np.percentile(waits, 95)),
            "sampling_latency": fmean(seconds),
            "sampling_latency_p95": float(np.percentile(seconds, 95)),
            "cut_share": fmean(text.is_cut for text in self.texts),
            "failed_share": 1 - len(known) / len(self.outcomes),
        }

    def failures(self) -> str:
        """Kinds of failed rewards with their counts, and the first message; empty if none failed."""
        failed = [part for each in self.outcomes for part in each.details.values() if part.failure]
        if not failed:
            return ""
        kinds = Counter(part.failure for part in failed)
        listed = ", ".join(f"{kind} {count}" for kind, count in kinds.most_common())
        return f"{listed} ({failed[0].message})"


@dataclass
class RewardedRollout:
    """`Rollout` of a run. `warn` is called with findings, `say` with sentences for the events."""

    sampler: PolicySampler
    reward: Reward
    training: PreparedDataset
    validation: PreparedDataset
    options: RolloutOptions
    say: Callable[[str], None]
    warn: Callable[[str], None]
    shown: dict[int, str] = field(default_factory=dict)
    """The latest greedy answer to each prompt of the validation data, by its line."""
    findings: Findings = field(default_factory=Findings)

    def sample(self, number: int, prompts: Sequence[TokenizedExample]) -> Sampled:
        """Raises InvalidArgument if more than MOST_FAILED of the rewards failed."""
        key = self._key(number, prompts)
        sampled = self._stored(number, key)
        if sampled is None:
            scoring = self._scored(number, prompts, self.training, self.options.samples)
            sampled = self._grouped(scoring)
            if words := scoring.failures():
                self._check_failures(number, sampled.measured["failed_share"], words)
            self._store(number, key, sampled)
        for words in self.findings.after(number, sampled.groups):
            self.warn(words)
        return sampled

    def evaluate(self, number: int, prompts: Sequence[TokenizedExample]) -> dict[str, float]:
        scoring = self._scored(number, prompts, self.validation, 0)
        self.shown = {prompt.line: words for prompt, words in zip(prompts, scoring.words, strict=True)}
        measured = scoring.measured()
        self.say(self._about(number, measured["reward"], prompts, scoring))
        return measured

    def forget(self, completed: int) -> None:
        if self.options.resume_folder is not None:
            for path in self.options.resume_folder.glob("answers-*.json"):
                if int(path.stem.removeprefix("answers-")) <= completed:
                    path.unlink()

    def _scored(
        self, number: int, prompts: Sequence[TokenizedExample], dataset: PreparedDataset, samples: int
    ) -> Scoring:
        """Sampled answers to each prompt, or one greedy answer if `samples` is 0, with their rewards."""
        requests = [self._request(number, place, prompt, samples) for place, prompt in enumerate(prompts)]
        with around("sample"):
            groups = self.sampler.answers(requests)
        texts = [text for group in groups for text in group]
        words = [self._words(text) for text in texts]
        examples = [example_of(dataset, prompt.line) for prompt in prompts for _ in range(samples or 1)]
        batch = [
            Sample(example, {"role": "model", "parts": [{"text": each}]}, number, self.options.job)
            for example, each in zip(examples, words, strict=True)
        ]
        with around("score"):
            outcomes = asyncio.run(self.reward.score(batch))
        return Scoring(texts, words, outcomes)

    def _request(self, number: int, place: int, prompt: TokenizedExample, samples: int) -> Request:
        """The seed of a prompt's answers depends on the job's seed, the step and the prompt's place in it."""
        tokens, options = prompt.tokens.tolist(), self.options
        room = min(options.max_tokens, options.context - len(tokens))
        if not samples:
            return Request(tokens, room)
        seed = np.random.SeedSequence([options.seed, number, place]).generate_state(1)[0]
        return Request(tokens, room, samples, int(seed))

    def _words(self, text: Text) -> str:
        return self.sampler.tokenizer.decode(text.tokens if text.is_cut else text.tokens[:-1])

    def _grouped(self, scoring: Scoring) -> Sampled:
        answers = [
            Answer(text.tokens, text.logprobs, text.is_cut, outcome.reward)
            for text, outcome in zip(scoring.texts, scoring.outcomes, strict=True)
        ]
        size = self.options.samples
        groups = [answers[first : first + size] for first in range(0, len(answers), size)]
        return Sampled(groups, scoring.measured() | {"learnable": fmean(differ(group) for group in groups)})

    def _check_failures(self, number: int, share: float, words: str) -> None:
        if share > MOST_FAILED:
            raise InvalidArgument(
                f"Step {number}: {share:.0%} of the rewards failed: {words}. Above {MOST_FAILED:.0%} a job ends; "
                "correct the reward, and try it with validateReinforcementTuningReward first."
            )
        self.say(f"Step {number}: {share:.0%} of the rewards failed and teach nothing: {words}.")

    def _key(self, number: int, prompts: Sequence[TokenizedExample]) -> str:
        """Everything that decides the answers of a step: the exact weights and their products, and the prompts."""
        decoder, adapter = self.sampler.decoder, self.sampler.adapter
        weights = adapter.values.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()
        facts = [
            VERSION, number, str(decoder.dtype), decoder.device.type, decoder.ops.name, asdict(self.options) | {
                "resume_folder": "", "quotes": "",
            }, [prompt.line for prompt in prompts],
        ]  # fmt: skip
        return hashlib.sha256(json.dumps(facts).encode() + hashlib.sha256(weights).digest()).hexdigest()

    def _stored(self, number: int, key: str) -> Sampled | None:
        """The answers that an earlier attempt drew from these weights; None if there are none."""
        path = self._path(number)
        if path is None or not path.exists():
            return None
        found: dict[str, Any] = json.loads(path.read_bytes())
        if found["key"] != key:
            return None
        return Sampled([[Answer(**answer) for answer in group] for group in found["groups"]], found["measured"])

    def _store(self, number: int, key: str, sampled: Sampled) -> None:
        if path := self._path(number):
            write_whole(path, json.dumps({"key": key, **asdict(sampled)}).encode())

    def _path(self, number: int) -> Path | None:
        folder = self.options.resume_folder
        return folder / f"answers-{number}.json" if folder is not None else None

    def _about(self, number: int, mean: float, prompts: Sequence[TokenizedExample], scoring: Scoring) -> str:
        """The mean reward after a step, and a few answers with theirs."""
        words = f"Step {number}: mean reward {mean:.3f} of {len(prompts)} validation prompts."
        if failures := scoring.failures():
            words += f" Failed rewards: {failures}."
        if not self.options.quotes:
            return words
        chosen = [index * len(prompts) // SHOWN_ANSWERS for index in range(min(SHOWN_ANSWERS, len(prompts)))]
        for index in dict.fromkeys(chosen):
            reward, text = scoring.outcomes[index].reward, scoring.words[index].strip()
            cut = text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + "…"
            shown = "no reward" if reward is None else f"{reward:g}"
            words += f"\nLine {prompts[index].line}, reward {shown}: {cut}"
        return words
