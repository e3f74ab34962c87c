"""Preference tuning: direct preference optimisation (Rafailov et al. 2023, arXiv 2305.18290) with the sigmoid loss.

A pair is two token rows, the preferred completion first. Its two log-probabilities are sums over all tokens of a
completion, with the end of the turn and without the prompt; nothing is divided by lengths. They are compared with those
of the reference, the initial model of the job.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from sarto.contract.tuning_run import SERIES
from sarto.engine.dataset.statistics import data_stats
from sarto.engine.models.decoder import Adapters, Decoder
from sarto.engine.tuning.methods.method import Loss, Method, Start
from sarto.engine.tuning.methods.references import with_references
from sarto.engine.tuning.methods.target_losses import target_losses
from sarto.engine.tuning.packing import Batch, MemoryPlan, TokenizedExample, TokenizedRows, plan
from sarto.errors import InvalidArgument

ROWS = 2
FORWARD = MemoryPlan(token_budget=0, keep_attention=False)
"""Memory plan of passes without gradients; the caller plans their batches with a budget of its own."""


def pair_losses(
    log_probabilities: Tensor, references: Tensor, beta: float, smoothing: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Loss and margin of each pair: (N, 2) and (N, 2), the preferred completion first, to (N,) and (N,).

    With the rewards r = beta (log-probability - reference), the margin is r(preferred) - r(other), and the loss the
    negative logarithm of its sigmoid. `smoothing` is the share of pairs that count as reversed; 0 in jobs."""
    preferred, other = (log_probabilities - references).unbind(1)
    margins = beta * (preferred - other)
    return torch.lerp(F.softplus(-margins), F.softplus(margins), smoothing), margins


def log_probabilities(decoder: Decoder, adapters: Adapters, memory: MemoryPlan, batch: Batch) -> Tensor:
    """Sum over the supervised tokens of each row: (N,) float64, in the order of the rows."""
    losses, _ = target_losses(decoder, adapters, batch, memory)
    sums = [each.sum() for each in losses.double().split(batch.counts)]
    return torch.stack(sums).neg().index_select(0, batch.order)


def batch_loss(
    decoder: Decoder, adapters: Adapters, beta: float, batch: Batch, memory: MemoryPlan
) -> tuple[Tensor, Tensor]:
    """Summed loss of the batch's pairs, and the sums of PREFERENCE.measures."""
    values = log_probabilities(decoder, adapters, memory, batch).view(-1, ROWS)
    losses, margins = pair_losses(values, batch.references.view(-1, ROWS), beta)
    right = margins.detach().gt(0).double().sum()
    return losses.sum(), torch.stack([right, margins.detach().sum(), *values.detach().sum(0)])


def _begin(start: Start) -> tuple[Loss, tuple[TokenizedRows, ...]]:
    beta = start.spec.parameters.beta
    if beta is None:
        raise InvalidArgument("a run that learns from pairs needs a value for beta")
    start.ranks.share(start.adapter.values)
    forward = partial(log_probabilities, start.decoder, start.adapter, FORWARD)
    examples = with_references(start, ROWS, forward)
    return partial(batch_loss, start.decoder, start.adapter, beta), examples


def _units(rows: Sequence[TokenizedExample]) -> int:
    """The number of pairs."""
    return len(rows) // ROWS


PREFERENCE = Method(
    data_formats=("preference",),
    rows_per_example=ROWS,
    begin=_begin,
    plan=partial(plan, per_example=ROWS),
    units=_units,
    is_relative=True,
    measures=("accuracy", "margin", "chosen_logp", "rejected_logp"),
    series=SERIES["preference"],
    statistics=data_stats,
)
