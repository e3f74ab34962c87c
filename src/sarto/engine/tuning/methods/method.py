"""A tuning method: the facts and functions by which a run learns from its rows.

Each module of this package defines one `Method`; `METHODS` lists them. Evaluation does not depend on the method: it
uses the first example that `parse_examples` returns for a line. Knows no optimiser and no files.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from sarto.contract.tuning_run import DataStats, RunSpec, Series
from sarto.conversations.examples import DataFormat
from sarto.engine.dataset.token_store import TokenStore
from sarto.engine.models.decoder import Decoder
from sarto.engine.models.trainable import Trainable
from sarto.engine.tuning.packing import Batch, MemoryPlan, TokenizedExample, TokenizedRows
from sarto.engine.tuning.ranks import Ranks


class Loss(Protocol):
    """Summed loss over the units of a batch, differentiable in the adapter, and the sums of the method's `measures`
    over the same units: a scalar and (M,)."""

    def __call__(self, batch: Batch, memory: MemoryPlan) -> tuple[Tensor, Tensor]: ...


@dataclass(frozen=True)
class Start:
    """A run before its first step, also when it resumes: the adapter is as at the start of the job."""

    spec: RunSpec
    decoder: Decoder
    adapter: Trainable
    examples: tuple[TokenizedRows, ...]
    """The training rows, then the validation rows where there are some."""
    digests: tuple[str, ...]
    """Digests of the contents of `examples`."""
    ranks: Ranks
    say: Callable[[str], None]
    """Adds a sentence to the job's events."""


@dataclass(frozen=True)
class Method:
    """A unit is an item over which losses are averaged: a token for a method that learns replies, a pair for one that
    learns preferences."""

    data_formats: tuple[DataFormat, ...]
    """Accepted forms of datasets: each is a line of `READERS`, which returns the examples of a line."""
    rows_per_example: int
    """Number of consecutive token rows in the store that form one example. The schedule counts them once, and they stay
    in one step, one rank and one batch."""
    begin: Callable[[Start], tuple[Loss, tuple[TokenizedRows, ...]]]
    """Returns the loss of a run, and its examples with the references that the loss needs: values of the initial model
    are computed here. Every rank calls it."""
    plan: Callable[[Sequence[TokenizedExample], int], list[Batch]]
    """Batches of at most this many rows, of whole examples. Rows without targets are excluded."""
    units: Callable[[Sequence[TokenizedExample]], int]
    """The number of units in these rows."""
    is_relative: bool
    """Whether the loss compares the model with the initial one, so that there is no loss of the base."""
    measures: tuple[str, ...]
    """Fields of StepMetrics and EvalMetrics for the means of the sums that the loss returns beside itself."""
    series: Series
    statistics: Callable[[TokenStore, int], DataStats]
    """Statistics of the training rows, and the number of steps."""
