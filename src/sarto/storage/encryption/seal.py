"""The record of how a stored blob is encrypted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO


@dataclass(frozen=True)
class Seal:
    """How received content is encrypted: the key's name, and a function from a file to an encrypting stream."""

    kms_key: str
    sealed_as: str
    begin: Callable[[BinaryIO], BinaryIO]
