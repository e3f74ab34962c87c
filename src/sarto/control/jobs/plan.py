"""The decisions made at create that a job's run needs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

Judge = tuple[str, str, str]
"""A model of this server: base weights, folder (relative to the home) and digest of the adapter."""
Judges = dict[str, Judge]
"""By name."""


@dataclass(frozen=True)
class Wishes:
    """What the maker of a job asked for, beyond the fields of its spec."""

    batch_size: int | None = None
    seed: int | None = None
    extras: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class JobPlan:
    """Decisions made at create that the job's run needs; stored with the job, never shown."""

    weights: str
    """Id of the base weights, of the catalogue or custom."""
    base_model: str
    """The base model by the user's name for it."""
    kind: str
    rank: int
    """0 if all weights are tuned."""
    parent_adapter: str = ""
    """Folder of the adapter that training begins with, relative to the home."""
    model: str = ""
    """Id of the model that gets a new version; empty creates a new model."""
    judges: Judges = field(default_factory=dict)
    """Judges by their names in the evaluationConfig."""
    teacher: Judge | None = None
    """The teacher of a distillation, if it is a model of this server."""
    memory_bytes: int = 0
    """Estimated memory of its run; 0 if unknown: then it has a server to itself."""
    least_memory_bytes: int = 0
    """Least memory with which the run works, on a smaller server."""
    kms_key: str = ""
    """The key, by its canonical name, under which all files of the job are encrypted."""
    may_replace: bool = True
    """Whether the job's maker may replace objects below its `outputUri`."""
    may_replace_evaluation: bool = True
    """Whether the maker may replace objects below the evaluation's output prefix."""
    is_full: bool = False
    """Whether all weights are tuned instead of an adapter."""
    batch_size: int | None = None
    """Examples a step, for a spec or a base whose spec has no batch size; None leaves it to the spec."""
    seed: int | None = None
    """Seed of the order of examples and of the adapter; None for the service's."""
    extras: dict[str, Any] = field(default_factory=dict)
    """What the maker gave in OpenAI's API and the tuning API has no field for, such as metadata and suffix."""
