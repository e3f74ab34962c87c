"""From prepared rows to checkpoints: loads the base, lays the adapter on it, fits the step into memory, resumes, tunes.

Used by `engine/run.py`, which prepared the rows and chose the parameters. Knows no dataset files.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sarto.engine.data.batches import epoch_order
from sarto.engine.data.store import TokenStore
from sarto.engine.families.decoder import Decoder
from sarto.engine.families.load import load_base, read_config
from sarto.engine.lora import ALL_TARGETS, AdapterShape, LoraAdapter, read_adapter
from sarto.engine.ops.choose import choose_operations
from sarto.engine.ops.segments import Segments
from sarto.engine.tuning.checkpoint import fingerprint
from sarto.engine.tuning.journal import Journal
from sarto.engine.tuning.keeper import Keeper
from sarto.engine.tuning.loop import Meter, Milestones, peak_memory_bytes, tune
from sarto.engine.tuning.memory import StepShape, choose_memory, free_memory_bytes, step_bytes
from sarto.engine.tuning.placement import choose_device, choose_dtype, place, threads_of_rank
from sarto.engine.tuning.schedule import Schedule
from sarto.engine.tuning.supervised import MemoryPlan, SegmentAttention
from sarto.engine.tuning.team import Order, Team
from sarto.engine.tuning.trainer import Examples, Optimisation, Trainer, take
from sarto.errors import FailedPrecondition
from sarto.schema.runs import CheckpointRecord, ChosenParameters, RunSpec

CALIBRATION = 1024
"""Side of the square products that measure the ceiling."""
TIGHT = 0.4
"""A step estimated at more than this share of the free memory is tried out before the first one."""


@dataclass(frozen=True)
class Rows:
    """One dataset, tokenised. `lengths` are tokens by row; `digest` names content and rendering."""

    examples: Examples
    lengths: np.ndarray[Any, np.dtype[np.int64]]
    digest: str

    @classmethod
    def of(cls, store: TokenStore) -> Rows:
        return cls(store, store.lengths.astype(np.int64), store.folder.name)

    @property
    def tokens(self) -> int:
        return int(self.lengths.sum())


class Session:
    """One run's model and state, ready to tune. `parameters` gains what was found out on the way (`details`)."""

    def __init__(
        self,
        spec: RunSpec,
        parameters: ChosenParameters,
        training: Rows,
        validation: Rows | None,
        loaded: Decoder | None = None,
        team: Team | None = None,
    ) -> None:
        """`loaded`: the base where it is in memory already; it is used if device and precision are those asked for."""
        self.spec, self.training, self.validation = spec, training, validation
        self.team = team or Team()
        started = time.perf_counter()
        self._check_lengths()
        self._load(loaded)
        targets = tuple(t for t in ALL_TARGETS if t in spec.parameters.target_modules) or ALL_TARGETS
        self.shape = AdapterShape(parameters.rank, parameters.alpha, targets)
        self.adapter = LoraAdapter(self.decoder, self.shape, spec.parameters.seed)
        if self.decoder is not loaded and not self.decoder.is_sharded:
            self.decoder.leave_files()
        if spec.parent_adapter is not None:
            self.adapter.load(read_adapter(Path(spec.parent_adapter)))
        self.schedule = Schedule(
            len(training.examples), parameters.batch_size, parameters.epoch_count, parameters.learning_rate,
            parameters.warmup_steps,
        )  # fmt: skip
        step, device = self._largest_step(), self.decoder.device
        free = self._free_bytes(device)
        self.memory = choose_memory(
            self.decoder.config, self.dtype, step, free, low=spec.low_memory, is_gpu=device.type != "cpu"
        )
        self._tight = step_bytes(self.decoder.config, self.dtype, step, self.memory) > TIGHT * free
        self.peak_flops = measure_peak(self.dtype, device) * spec.ranks
        self.trainer = Trainer(
            self.decoder, self.adapter, training.examples, self.schedule,
            Optimisation(spec.parameters.weight_decay, spec.parameters.max_grad_norm, spec.parameters.seed),
            self.memory, self.team,
        )  # fmt: skip
        self.parameters = parameters.model_copy(
            update={
                "precision": str(self.dtype).removeprefix("torch."),
                "device": str(device),
                "threads": spec.threads,
                "total_steps": self.schedule.total_steps,
                "details": parameters.details | self._details(step, free, time.perf_counter() - started),
            }
        )

    def _load(self, loaded: Decoder | None) -> None:
        """The base on this rank's device, whole or in parts."""
        spec, team = self.spec, self.team
        device = choose_device(spec, team.rank)
        if device.type == "cpu" and spec.ranks > 1:
            torch.set_num_threads(threads_of_rank(spec))
        self.dtype = choose_dtype(spec, device)
        team.meet(Path(spec.run_folder), device)
        self.placement = place(
            read_config(Path(spec.base.folder)), self.dtype, spec.base.quantisation, self._free_bytes(device),
            ranks=spec.ranks, always_shard=spec.shard,
        )  # fmt: skip
        if self.placement.is_sharded:
            # imports much of torch.distributed, which nothing else needs
            from sarto.engine.tuning.sharding import shard

            self.decoder = load_base(spec.base, self.dtype, "cpu")
            shard(self.decoder, device, team.count)
        elif loaded is not None and (loaded.dtype, loaded.device) == (self.dtype, device):
            self.decoder = loaded
            return
        else:
            self.decoder = load_base(spec.base, self.dtype, device)
        self.decoder.ops = choose_operations(device)

    def _free_bytes(self, device: torch.device) -> int:
        """On the device that has least: every rank finds the same. Ranks on a processor share what it has."""
        shared = self.spec.ranks if device.type == "cpu" else 1
        return self.team.least(free_memory_bytes(device) // shared, device)

    def tune(self, journal: Journal, keeper: Keeper, assess: Callable[[CheckpointRecord], None] | None = None) -> None:
        spec, schedule, trainer = self.spec, self.schedule, self.trainer
        keeper.resume(trainer, journal)
        if self._tight and trainer.completed < schedule.total_steps:
            trainer.order("probe")
            self._probe()
        validation_tokens = self.validation.tokens if self.validation else 0
        milestones = Milestones(
            schedule.evaluation_steps(self.training.tokens, validation_tokens),
            schedule.checkpoint_steps(spec.export_last_checkpoint_only),
            spec.stop_early,
        )
        validation = self.validation.examples if self.validation else None
        meter = Meter(*flops(self.decoder, self.adapter), self.peak_flops)
        tune(trainer, validation, milestones, journal, keeper, meter, assess)

    def follow(self, orders: Iterator[Order]) -> None:
        """Compute this rank's share of whatever the leader orders, and never return."""
        trainer = self.trainer
        for order in orders:
            trainer.memory = order.memory
            if order.kind == "step":
                trainer.gradients(take(self.training.examples, trainer.indices(order.number)))
            elif order.kind == "probe":
                self._probe()
            elif order.kind == "logits":
                self._logits(torch.tensor(order.tokens))
            else:
                assert self.validation is not None
                trainer.sums(self.validation.examples)

    def base_losses(self) -> tuple[float, float] | None:
        """Loss and accuracy of the base on the validation rows; None where there are none."""
        if self.validation is None:
            return None
        tuned = self.adapter.values.clone()
        self.adapter.values.zero_()
        try:
            loss, accuracy, _ = self.trainer.evaluate(self.validation.examples)
        finally:
            self.adapter.values.copy_(tuned)
        return loss, accuracy

    @property
    def serving_device(self) -> torch.device:
        """Where training is compared with serving: a base in parts fits the processor's memory only."""
        return torch.device("cpu") if self.decoder.is_sharded else self.decoder.device

    def logits(self, tokens: Tensor) -> Tensor:
        """What training now makes of one sequence: (T,) int64 to (T, V)."""
        if self.decoder.is_sharded:
            self.trainer.order("logits", tokens.tolist())
        return self._logits(tokens).to(tokens.device)

    @torch.inference_mode(False)
    @torch.no_grad()
    def _logits(self, tokens: Tensor) -> Tensor:
        count, device = len(tokens), self.decoder.device
        if self.decoder.is_sharded:
            self.team.share(self.adapter.values)
        grid = torch.arange(count, device=device)[None]
        segments = Segments.of((grid,), count)
        attend = SegmentAttention(self.decoder.ops, self.decoder.config, segments, keep=False)
        hidden = self.decoder(tokens.clone().to(device), torch.arange(count, device=device), attend, self.adapter)
        return self.decoder.logits(hidden)

    def fingerprint(self) -> str:
        """Of all that decides the numbers of this run but for the memory plan: a resumed run keeps the first one."""
        spec = self.spec
        return fingerprint(
            {
                "base": spec.base.digest,
                "parent": Path(spec.parent_adapter).name if spec.parent_adapter else "",
                "training": self.training.digest,
                "validation": self.validation.digest if self.validation else "",
                "parameters": spec.parameters.model_dump(),
                "schedule": repr(self.schedule),
                "shape": repr(self.shape),
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

    def _check_lengths(self) -> None:
        longest, context = int(self.training.lengths.max()), read_config(Path(self.spec.base.folder)).context
        if longest > context:
            raise FailedPrecondition(f"an example has {longest} tokens; the base model reads at most {context}")

    def _largest_step(self) -> StepShape:
        """Over the first epoch's order; later epochs differ little, and the budget bounds a batch anyway."""
        order = epoch_order(len(self.training.lengths), self.spec.parameters.seed, 1)
        lengths, size = self.training.lengths[order], self.schedule.batch_size
        steps = [int(lengths[i : i + size].sum()) for i in range(0, len(lengths), size)]
        return StepShape(int(lengths.max()), max(steps))

    def _probe(self) -> None:
        """The longest examples first, without an update: what does not fit fails in the first seconds."""
        longest = np.argsort(self.training.lengths)[-self.schedule.batch_size :]
        self.trainer.gradients(take(self.training.examples, longest))

    def _details(self, step: StepShape, free: int, seconds: float) -> dict[str, Any]:
        return {
            "operations": self.decoder.ops.name,
            "ranks": self.team.count,
            "base_placement": self.placement.words,
            "base_estimate_bytes": self.placement.base_bytes,
            "memory_plan": _describe(self.memory, step),
            "memory_free_bytes": free,
            "memory_step_estimate_bytes": step_bytes(self.decoder.config, self.dtype, step, self.memory),
            "measured_peak_flops": self.peak_flops,
            "adapter_parameters": self.adapter.values.numel(),
            "load_seconds": round(seconds, 3),
            "memory_after_load_bytes": peak_memory_bytes(),
        }


def _describe(plan: MemoryPlan, step: StepShape) -> str:
    attention = "attention weights kept" if plan.keep_attention else "attention weights computed twice"
    layers = ", layers computed twice" if plan.recompute_layers else ""
    return f"batches of up to {max(plan.token_budget, step.longest)} tokens, {attention}{layers}"


def flops(decoder: Decoder, adapter: LoraAdapter) -> tuple[float, float]:
    """Nominal operations of a training step: for each token, and for each supervised token.

    4 for each frozen weight of a layer (forward and the gradient of activations), 6 for each trained one."""
    frozen = sum(
        layer.projection(group).outputs * layer.projection(group).inputs
        for layer in map(decoder.layer, range(decoder.config.layers))
        for group in ("qkv", "o", "gate_up", "down")
    )
    head = decoder.config.vocabulary * decoder.config.width
    return 4.0 * frozen + 6.0 * adapter.values.numel(), 4.0 * head


def measure_peak(dtype: torch.dtype, device: torch.device) -> float:
    """Operations a second of large square products, the best of a few; 0 on a GPU, where clocks need other care."""
    if device.type != "cpu":
        return 0.0
    left, right = (torch.ones(CALIBRATION, CALIBRATION, dtype=dtype) for _ in range(2))
    best = float("inf")
    for _ in range(4):
        started = time.perf_counter()
        torch.mm(left, right)
        best = min(best, time.perf_counter() - started)
    return 2.0 * CALIBRATION**3 / best
