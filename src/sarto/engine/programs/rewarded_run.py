"""The parts of a run that learns from rewards: its prompts, its answers, and the rows of its certificates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sarto.contract.tuning_run import CheckpointRecord, ChosenParameters, RunSpec
from sarto.conversations.examples import Example
from sarto.engine.dataset.prepare import PreparedDataset, check_usable
from sarto.engine.models.decoder import Decoder
from sarto.engine.models.lora import LoraAdapter
from sarto.engine.models.trainable import Trainable
from sarto.engine.programs.run_reward import read_reward
from sarto.engine.reinforcement.prompts import PartOfRows, answered, check_references, lines_of, split
from sarto.engine.reinforcement.rollout import RewardedRollout, RolloutOptions
from sarto.engine.reinforcement.sampler import PolicySampler
from sarto.engine.rendering.tokenizer import ChatTokenizer
from sarto.engine.tuning.progress_log import ProgressLog
from sarto.engine.tuning.session import TokenisedDataset
from sarto.errors import Unimplemented

NO_FORECAST = "The time is not forecast: the lengths of the answers are not known before the first step."
ONE_DEVICE = "Reinforcement tuning on several devices is not built yet; use one device."


class RewardedRun:
    """A run that learns from rewards. `rollout` is a factory for `Session`."""

    def __init__(
        self,
        spec: RunSpec,
        tokenizer: ChatTokenizer,
        training: PreparedDataset,
        validation: PreparedDataset | None,
        log: ProgressLog,
    ) -> None:
        """Raises InvalidArgument for rows that the reward cannot use, Unimplemented for several devices."""
        given = spec.parameters.reinforcement
        assert given is not None
        if spec.ranks > 1:
            raise Unimplemented(ONE_DEVICE)
        check_usable(training, validation)
        self.spec, self.tokenizer, self.log = spec, tokenizer, log
        self.training, self.validation = training, validation or training
        self.reward, needed = read_reward(given.reward)
        self.rows = TokenisedDataset.of(training.store)
        if validation is None:
            kept, held_out, words = split(len(training.store), spec.parameters.seed)
            log.say("note", message=words)
            self.held_out = _part(training, held_out, "held out")
            self.rows = _part(training, kept, "kept")
        else:
            self.held_out = TokenisedDataset.of(validation.store)
        check_references(self.training, lines_of(self.rows.examples), needed)
        check_references(self.validation, lines_of(self.held_out.examples), needed)
        log.say("note", message=NO_FORECAST)
        self._rollout: RewardedRollout | None = None

    def rollout(self, parameters: ChosenParameters) -> Callable[[Decoder, Trainable], RewardedRollout]:
        def make(decoder: Decoder, adapter: Trainable) -> RewardedRollout:
            assert isinstance(adapter, LoraAdapter)
            spec = self.spec
            options = RolloutOptions(
                job=spec.job.rpartition("/")[2],
                seed=spec.parameters.seed,
                samples=parameters.samples_per_prompt or 1,
                max_tokens=parameters.max_output_tokens or 1,
                context=decoder.config.context,
                resume_folder=Path(spec.resume_folder) if spec.resume_folder else None,
                quotes=spec.quotes,
            )
            self._rollout = RewardedRollout(
                PolicySampler(spec.base, decoder, adapter, self.tokenizer),
                self.reward,
                self.training,
                self.validation,
                options,
                say=lambda words: self.log.say("note", message=words),
                warn=lambda words: self.log.say("warning", message=words),
            )
            return self._rollout

        return make

    def certified_rows(self, lines: Sequence[int]) -> list[Example]:
        """Prompts of the validation data with their latest greedy answers."""
        assert self._rollout is not None
        shown = self._rollout.shown
        return [answered(self.validation, line, shown.get(line, "")) for line in lines]


def best_reward(records: Sequence[CheckpointRecord]) -> tuple[str | None, str]:
    """The id of the checkpoint with the highest validation reward, the first of equals, and the evidence."""
    rewards = {each.checkpoint_id: -each.evaluation.loss for each in records if each.evaluation is not None}
    if not rewards:
        return None, ""
    best = max(rewards, key=lambda name: rewards[name])
    return best, f"validation reward {rewards[best]:.3f}. Rule: the highest validation reward, the earliest of equals"


def _part(prepared: PreparedDataset, numbers: npt.NDArray[np.int64], name: str) -> TokenisedDataset:
    store = prepared.store
    part = PartOfRows(store, numbers)
    return TokenisedDataset(part, store.lengths[part.numbers].astype("int64"), f"{store.folder.name} {name}")
