"""The tokens that a grammar allows next, as a mask over logits."""

from __future__ import annotations

import torch
from llguidance import LLMatcher
from torch import Tensor


class GrammarConstraint:
    """The state of one response in its grammar."""

    def __init__(self, matcher: LLMatcher) -> None:
        self._matcher = matcher

    @property
    def is_complete(self) -> bool:
        """Whether only the end may follow."""
        return bool(self._matcher.is_stopped())

    def allow(self, logits: Tensor) -> None:
        packed = torch.frombuffer(bytearray(self._matcher.compute_bitmask()), dtype=torch.uint8).to(logits.device)
        bits = (packed[:, None] >> torch.arange(8, dtype=torch.uint8, device=logits.device)) & 1
        logits.masked_fill_(bits.flatten()[: len(logits)] == 0, -torch.inf)

    def accept(self, token: int) -> None:
        self._matcher.consume_token(token)
