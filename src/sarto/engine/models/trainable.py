"""The seam between training and what it trains: an adapter, or all weights of a decoder."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from torch import Tensor

from sarto.engine.models.decoder import Adapters


class Trainable(Adapters, Protocol):
    """Trained values and their gradients, as two float32 vectors."""

    @property
    def values(self) -> Tensor: ...

    @property
    def gradients(self) -> Tensor: ...

    @property
    def shape(self) -> object:
        """What is trained, for fingerprints."""
        ...

    def named_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """(Name in the files, its view into `values`) in the order of the vector."""
        ...

    def refresh(self) -> None:
        """Apply changed `values` to the products."""
        ...
