"""The projections of a base that get an adapter, and its rank."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from sarto.engine.models.decoder import GROUPS
from sarto.errors import InvalidArgument

ALL_TARGETS = tuple(name.split(".")[-1] for names in GROUPS.values() for name in names)
"""`q_proj`, `k_proj` …: every linear projection of a layer."""


MAX_RANK = 32
"""The largest `adapterSize` of the API, for which borders are reserved; a larger adapter moves the matrices instead."""


@dataclass(frozen=True)
class AdapterShape:
    rank: int
    alpha: float
    targets: tuple[str, ...] = ALL_TARGETS

    def __post_init__(self) -> None:
        unknown = sorted(set(self.targets) - set(ALL_TARGETS))
        if unknown or not self.targets:
            raise InvalidArgument(f"Adapter targets {unknown or 'are empty'}; known: {', '.join(ALL_TARGETS)}.")

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


@dataclass(frozen=True)
class AdapterFile:
    """A PEFT adapter on disk: float32 tensors by the names in the file."""

    shape: AdapterShape
    tensors: dict[str, Tensor]
