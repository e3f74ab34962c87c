"""Supervised tuning: the loss of a packed batch is the cross-entropy of its supervised tokens."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from torch import Tensor

from sarto.contract.tuning_run import SERIES
from sarto.engine.dataset.statistics import data_stats
from sarto.engine.models.decoder import Adapters, Decoder
from sarto.engine.tuning.methods.method import Loss, Method, Start
from sarto.engine.tuning.methods.target_losses import target_losses
from sarto.engine.tuning.packing import Batch, MemoryPlan, TokenizedExample, TokenizedRows, plan, supervised_count


def batch_loss(decoder: Decoder, adapters: Adapters, batch: Batch, memory: MemoryPlan) -> tuple[Tensor, Tensor]:
    """Summed loss in nats over the batch's targets, differentiable in the adapter, and the number of targets that rank
    first."""
    losses, right = target_losses(decoder, adapters, batch, memory)
    return losses.sum(), right[None]


def _begin(start: Start) -> tuple[Loss, tuple[TokenizedRows, ...]]:
    """The loss; it needs no values of the initial model."""
    return partial(batch_loss, start.decoder, start.adapter), start.examples


def _units(rows: Sequence[TokenizedExample]) -> int:
    """The number of supervised tokens."""
    return sum(supervised_count(row.loss_mask) for row in rows)


SUPERVISED = Method(
    data_formats=("auto", "translation"),
    rows_per_example=1,
    begin=_begin,
    plan=plan,
    units=_units,
    is_relative=False,
    measures=("accuracy",),
    series=SERIES["supervised"],
    statistics=data_stats,
)
