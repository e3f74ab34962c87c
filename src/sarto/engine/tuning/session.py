"""From prepared rows to checkpoints: loads the base, adds the adapter, plans memory, resumes, tunes.

Knows no dataset files.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sarto.contract.tuning_run import CheckpointRecord, ChosenParameters, RunSpec
from sarto.engine.dataset.token_store import TokenStore
from sarto.engine.dataset_report.machine_speed import processor_speed
from sarto.engine.host_memory import free_memory_bytes
from sarto.engine.models.decoder import Decoder
from sarto.engine.models.load import load_base, read_config
from sarto.engine.models.trainable import Trainable
from sarto.engine.ops.select import choose_operations
from sarto.engine.tuning.checkpoint_files import fingerprint
from sarto.engine.tuning.checkpointing import Checkpointing
from sarto.engine.tuning.loop import Meter, Milestones, peak_memory_bytes, tune
from sarto.engine.tuning.memory_plan import StepShape, choose_memory, describe, step_bytes
from sarto.engine.tuning.methods import Loss, Rollout, Start, method_of
from sarto.engine.tuning.packing import TokenizedRows, rows_of, take
from sarto.engine.tuning.placement import choose_device, choose_dtype, place, place_full, threads_of_rank
from sarto.engine.tuning.progress_log import ProgressLog
from sarto.engine.tuning.ranks import RankCommand, Ranks
from sarto.engine.tuning.sampled_trainer import make_trainer
from sarto.engine.tuning.schedule import Schedule
from sarto.engine.tuning.segment_attention import SegmentAttention
from sarto.engine.weights.starting_weights import starting_weights
from sarto.errors import FailedPrecondition

UNTOUCHED = 3
"""Vectors that full tuning allocates and first writes in its first step: gradients and both moments."""
TIGHT = 0.4
"""A step estimated above this share of the free memory is tried before the first step."""


@dataclass(frozen=True)
class TokenisedDataset:
    """One dataset, tokenised. `lengths` are tokens by row; `digest` names content and rendering."""

    examples: TokenizedRows
    lengths: np.ndarray[Any, np.dtype[np.int64]]
    digest: str

    @classmethod
    def of(cls, store: TokenStore) -> TokenisedDataset:
        return cls(store, store.lengths.astype(np.int64), store.folder.name)

    @property
    def tokens(self) -> int:
        return int(self.lengths.sum())


class Session:
    """One run's model and state, ready to tune. `parameters` gets the measured values (`details`)."""

    def __init__(
        self,
        spec: RunSpec,
        parameters: ChosenParameters,
        training: TokenisedDataset,
        validation: TokenisedDataset | None,
        loaded: Decoder | None = None,
        ranks: Ranks | None = None,
        say: Callable[[str], None] = lambda words: None,
        rollout: Callable[[Decoder, Trainable], Rollout] | None = None,
    ) -> None:
        """`loaded` is a base in memory; it is used if its device and precision match. `say` adds a sentence to the
        job's events. `rollout` is for a method whose rows are sampled from these weights."""
        self.spec = spec
        self.method = method_of(spec)
        self.ranks = ranks or Ranks()
        started = time.perf_counter()
        _check_lengths(spec, training)
        self._load(loaded)
        self.is_full = spec.parameters.is_full
        self.adapter = starting_weights(self.decoder, spec, parameters)
        if self.decoder is not loaded and not self.decoder.is_sharded and not self.is_full:
            self.decoder.leave_files()
        by_example = training.lengths.reshape(-1, self.method.rows_per_example)
        self._example_lengths = by_example.sum(axis=1)
        self.schedule = _schedule(parameters, len(self._example_lengths))
        step = self._step_shape(parameters, int(training.lengths.max()))
        device = self.decoder.device
        free = self._free_bytes(device)
        if self.is_full and device.type == "cpu":  # gradients and moments have no pages yet
            free = max(0, free - UNTOUCHED * self.adapter.values.nbytes)
        self.memory = choose_memory(
            self.decoder.config, self.dtype, step, free, low=spec.low_memory, is_gpu=device.type != "cpu"
        )
        self._tight = step_bytes(self.decoder.config, self.dtype, step, self.memory) > TIGHT * free
        self.peak_flops = measure_peak(self.dtype, device) * spec.ranks
        loss, self.training, self.validation = self._begin(training, validation, say)
        self.trainer = make_trainer(
            self.decoder, self.adapter, self.method, loss, self.training.examples, self.schedule, spec.parameters,
            self.memory, self.ranks, rollout(self.decoder, self.adapter) if rollout else None,
        )  # fmt: skip
        self._tight = self._tight and rollout is None  # sampled rows do not exist yet
        self.parameters = parameters.model_copy(
            update={
                "precision": str(self.dtype).removeprefix("torch."),
                "device": str(device),
                "threads": spec.threads,
                "total_steps": self.schedule.total_steps,
                "details": parameters.details | self._details(step, free, time.perf_counter() - started),
            }
        )

    def _begin(
        self, training: TokenisedDataset, validation: TokenisedDataset | None, say: Callable[[str], None]
    ) -> tuple[Loss, TokenisedDataset, TokenisedDataset | None]:
        """The loss, and the datasets with their references."""
        datasets = [training, *([validation] if validation else [])]
        rows, digests = zip(*((each.examples, each.digest) for each in datasets), strict=True)
        start = Start(self.spec, self.decoder, self.adapter, rows, digests, self.ranks, say)
        loss, examples = self.method.begin(start)
        loaded = [replace(each, examples=part) for each, part in zip(datasets, examples, strict=True)]
        return loss, loaded[0], loaded[1] if validation else None

    def _step_shape(self, parameters: ChosenParameters, longest: int) -> StepShape:
        """Sizes of the steps, with the longest possible answers where rows are sampled; they share their prompt."""
        lengths, answer = self._example_lengths, parameters.max_output_tokens or 0
        lengths = lengths + answer * (parameters.samples_per_prompt or 0)
        return StepShape.of(lengths, parameters.batch_size, self.spec.parameters.seed, longest + answer)

    def _load(self, loaded: Decoder | None) -> None:
        """The base on this rank's device, whole or sharded."""
        spec, ranks = self.spec, self.ranks
        device = choose_device(spec, ranks.rank)
        if device.type == "cpu" and spec.ranks > 1:
            torch.set_num_threads(threads_of_rank(spec))
        self.dtype = choose_dtype(spec, device)
        ranks.meet(Path(spec.run_folder), device)
        config, free = read_config(Path(spec.base.folder)), self._free_bytes(device)
        if spec.parameters.is_full:
            self.placement = place_full(config, self.dtype, free, ranks=spec.ranks, always_shard=spec.shard)
            loaded = None  # its weights are shared with other runs
        else:
            self.placement = place(
                config, self.dtype, spec.base.quantisation, free, ranks=spec.ranks, always_shard=spec.shard
            )
        if self.placement.is_sharded:
            # imports much of torch.distributed, which nothing else needs
            from sarto.engine.tuning.sharding import shard

            self.decoder = load_base(spec.base, self.dtype, "cpu")
            shard(self.decoder, device, ranks.count)
        elif loaded is not None and (loaded.dtype, loaded.device) == (self.dtype, device):
            self.decoder = loaded
            return
        else:
            self.decoder = load_base(spec.base, self.dtype, device)
        self.decoder.ops = choose_operations(device)

    def _free_bytes(self, device: torch.device) -> int:
        """Free memory of the device with the least, the same on every rank. Ranks on a processor share its memory."""
        shared = self.spec.ranks if device.type == "cpu" else 1
        return self.ranks.least(free_memory_bytes(device) // shared, device)

    def tune(
        self,
        progress_log: ProgressLog,
        checkpointing: Checkpointing,
        assess: Callable[[CheckpointRecord], None] | None = None,
    ) -> float | None:
        """Tune and return the seconds without those of `assess`; None if the run was resumed or stopped early."""
        spec, schedule, trainer = self.spec, self.schedule, self.trainer
        checkpointing.resume(trainer, progress_log)
        begun_at, started, assessed = trainer.completed, time.monotonic(), 0.0

        def timed(record: CheckpointRecord) -> None:
            nonlocal assessed
            before = time.monotonic()
            if assess is not None:
                assess(record)
            assessed += time.monotonic() - before

        if self._tight and trainer.completed < schedule.total_steps:
            trainer.command("probe")
            self._probe()
        validation_tokens = self.validation.tokens if self.validation else 0
        milestones = Milestones(
            schedule.evaluation_steps(self.training.tokens, validation_tokens),
            schedule.checkpoint_steps(spec.export_last_checkpoint_only),
            spec.stop_early,
        )
        validation = self.validation.examples if self.validation else None
        meter = Meter(*flops(self.decoder, self.adapter), self.peak_flops)
        tune(trainer, validation, milestones, progress_log, checkpointing, meter, timed)
        is_whole = begun_at == 0 and trainer.completed == schedule.total_steps
        return time.monotonic() - started - assessed if is_whole else None

    def follow(self, commands: Iterator[RankCommand]) -> None:
        """Compute this rank's share of the leader's commands; does not return."""
        trainer = self.trainer
        for command in commands:
            trainer.memory = command.memory
            if command.kind == "step":
                trainer.gradients(take(self.training.examples, trainer.indices(command.number)))
            elif command.kind == "probe":
                self._probe()
            elif command.kind == "logits":
                self._logits(torch.tensor(command.tokens))
            else:
                assert self.validation is not None
                trainer.sums(self.validation.examples)

    def base_losses(self) -> tuple[float, float] | None:
        """Loss and accuracy of the base on the validation rows; None without validation rows, and for a loss that
        compares with the initial model. If all weights are tuned, only before the first step."""
        if self.validation is None or self.method.is_relative:
            return None
        if self.is_full:
            assert self.trainer.completed == 0
            found = self.trainer.evaluate(self.validation.examples)
            return found.loss, found.measured["accuracy"]
        tuned = self.adapter.values.clone()
        self.adapter.values.zero_()
        try:
            losses = self.trainer.evaluate(self.validation.examples)
        finally:
            self.adapter.values.copy_(tuned)
        return losses.loss, losses.measured["accuracy"]

    @property
    def serving_device(self) -> torch.device:
        """The device on which training is compared with serving: a sharded base fits only the processor's memory."""
        return torch.device("cpu") if self.decoder.is_sharded else self.decoder.device

    def logits(self, tokens: Tensor) -> Tensor:
        """Training's logits of one sequence: (T,) int64 to (T, V)."""
        if self.decoder.is_sharded:
            self.trainer.command("logits", tokens.tolist())
        return self._logits(tokens).to(tokens.device)

    @torch.inference_mode(False)
    @torch.no_grad()
    def _logits(self, tokens: Tensor) -> Tensor:
        count, device = len(tokens), self.decoder.device
        if self.decoder.is_sharded:
            self.ranks.share(self.adapter.values)
        attend = SegmentAttention.alone(self.decoder, count)
        hidden = self.decoder(tokens.clone().to(device), torch.arange(count, device=device), attend, self.adapter)
        return self.decoder.logits(hidden)

    def fingerprint(self) -> str:
        """Fingerprint of everything that decides the numbers of this run, except the memory plan: a resumed run keeps
        the first one."""
        spec = self.spec
        return fingerprint(
            {
                "method": spec.method,
                "base": spec.base.digest,
                "parent": Path(spec.parent_adapter).name if spec.parent_adapter else "",
                "training": self.training.digest,
                "validation": self.validation.digest if self.validation else "",
                "parameters": spec.parameters.model_dump(),
                "schedule": repr(self.schedule),
                "shape": repr(self.adapter.shape),
                "precision": str(self.dtype),
                "device": self.decoder.device.type,
                "threads": spec.threads,
                "ranks": spec.ranks,
                "sharded": self.placement.is_sharded,
                "quantisation": spec.base.quantisation or "",
                "operations": self.decoder.ops.name,
                "torch": torch.__version__,
                "last_only": spec.export_last_checkpoint_only,
                "stop_early": spec.stop_early,
            }
        )

    def _probe(self) -> None:
        """Compute the longest examples without an update, so that missing memory fails the run in the first seconds."""
        longest = np.argsort(self._example_lengths)[-self.schedule.batch_size :]
        self.trainer.gradients(take(self.training.examples, rows_of(longest, self.method.rows_per_example)))

    def _details(self, step: StepShape, free: int, seconds: float) -> dict[str, Any]:
        return {
            "operations": self.decoder.ops.name,
            "instructions": self.spec.instructions.words,
            "ranks": self.ranks.count,
            "base_placement": self.placement.words,
            "base_estimate_bytes": self.placement.base_bytes,
            "memory_plan": describe(self.memory, step),
            "memory_free_bytes": free,
            "memory_step_estimate_bytes": step_bytes(self.decoder.config, self.dtype, step, self.memory),
            "measured_peak_flops": self.peak_flops,
            "trained_parameters" if self.is_full else "adapter_parameters": self.adapter.values.numel(),
            "load_seconds": round(seconds, 3),
            "memory_after_load_bytes": peak_memory_bytes(),
        }


def _schedule(parameters: ChosenParameters, examples: int) -> Schedule:
    """The schedule: by epochs, or by steps if these have intervals."""
    given = examples, parameters.batch_size, parameters.epoch_count, parameters.learning_rate, parameters.warmup_steps
    if parameters.evaluate_interval is None or parameters.checkpoint_interval is None:
        return Schedule(*given)
    return Schedule(*given, parameters.total_steps, parameters.evaluate_interval, parameters.checkpoint_interval)


def _check_lengths(spec: RunSpec, training: TokenisedDataset) -> None:
    longest, context = int(training.lengths.max()), read_config(Path(spec.base.folder)).context
    if longest > context:
        raise FailedPrecondition(f"An example has {longest} tokens; the base model reads at most {context}.")


def flops(decoder: Decoder, adapter: Trainable) -> tuple[float, float]:
    """Nominal operations of a training step: per token, and per supervised token.

    4 for each frozen weight of a layer (forward and the gradient of activations), 6 for each trained one."""
    matrices = sum(
        layer.projection(group).outputs * layer.projection(group).inputs
        for layer in map(decoder.layer, range(decoder.config.layers))
        for group in ("qkv", "o", "gate_up", "down")
    )
    head = decoder.config.vocabulary * decoder.config.width
    if decoder.trained is not None:
        return 6.0 * matrices, 6.0 * head
    return 4.0 * matrices + 6.0 * adapter.values.numel(), 4.0 * head


def measure_peak(dtype: torch.dtype, device: torch.device) -> float:
    """Operations per second of large square products on all threads; 0 on a GPU, whose clocks need another method."""
    return processor_speed(dtype, torch.get_num_threads()) if device.type == "cpu" else 0.0
