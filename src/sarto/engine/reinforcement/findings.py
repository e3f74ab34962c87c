"""Findings about the answers of a run: points that its user should know before the model is used. Pure functions."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean, pstdev

from sarto.engine.tuning.methods.reinforcement import Answer

WINDOW = 10
"""Steps that are compared."""
SAME_SHARE, SAME_STEPS = 0.9, 3
"""Answers have collapsed when all answers are equal in this share of the groups, for this number of steps."""
LENGTH_CORRELATION, LENGTH_GROWTH = 0.7, 1.25
"""The reward follows the length when, inside the groups, both correlate by more than the first, and the mean length has
grown by the second."""
NOTHING_TO_LEARN = (
    "In step 1 no prompt has answers with different rewards, so nothing can be learned from it: the base never does "
    "what is rewarded, or always does. Tune it on examples first, or change the reward."
)
COLLAPSED = (
    "The answers have collapsed: for {steps} steps, {share:.0%} of the prompts or more had {samples} equal answers. "
    "Later steps teach little; use an earlier checkpoint, or a smaller learning rate multiplier."
)
LENGTH = (
    "The reward follows the length of the answers: they correlate by {correlation:.2f} within the prompts, and the "
    "answers have {after:.0f} tokens instead of {before:.0f}. Check that the reward is not for the length."
)


@dataclass
class Findings:
    """Looks at one step after the other; each finding is made once."""

    _same: int = 0
    _lengths: list[float] = field(default_factory=list)
    _pairs: deque[list[tuple[float, float]]] = field(default_factory=lambda: deque(maxlen=WINDOW))
    _made: set[str] = field(default_factory=set)

    def after(self, number: int, groups: Sequence[Sequence[Answer]]) -> list[str]:
        """The findings that this step shows first."""
        found: dict[str, str] = {}
        if number == 1 and not any(differ(group) for group in groups):
            found["nothing"] = NOTHING_TO_LEARN
        share = fmean(all(answer.tokens == group[0].tokens for answer in group) for group in groups)
        self._same = self._same + 1 if share >= SAME_SHARE and len(groups[0]) > 1 else 0
        if self._same >= SAME_STEPS:
            found["collapsed"] = COLLAPSED.format(steps=SAME_STEPS, share=SAME_SHARE, samples=len(groups[0]))
        self._lengths.append(fmean(len(answer.tokens) for group in groups for answer in group))
        self._pairs.append([pair for group in groups for pair in _centred(group)])
        if words := self._about_length():
            found["length"] = words
        new = {name: words for name, words in found.items() if name not in self._made}
        self._made |= new.keys()
        return list(new.values())

    def _about_length(self) -> str:
        if len(self._lengths) < 2 * WINDOW:
            return ""
        before, after = fmean(self._lengths[:WINDOW]), fmean(self._lengths[-WINDOW:])
        pairs = [pair for step in self._pairs for pair in step]
        correlation = _correlation(pairs)
        if correlation < LENGTH_CORRELATION or after < LENGTH_GROWTH * before:
            return ""
        return LENGTH.format(correlation=correlation, before=before, after=after)


def differ(group: Sequence[Answer]) -> bool:
    """Whether the answers to a prompt have different rewards, so that they teach something."""
    return len({answer.reward for answer in group if answer.reward is not None}) > 1


def _centred(group: Sequence[Answer]) -> list[tuple[float, float]]:
    """Length and reward of each answer, less the mean of its group."""
    known = [(float(len(answer.tokens)), answer.reward) for answer in group if answer.reward is not None]
    if not known:
        return []
    length, reward = fmean(one for one, _ in known), fmean(other for _, other in known)
    return [(one - length, other - reward) for one, other in known]


def _correlation(pairs: Sequence[tuple[float, float]]) -> float:
    """Pearson's correlation of centred pairs; 0 if one side does not vary."""
    if not pairs:
        return 0.0
    first, second = pstdev(one for one, _ in pairs), pstdev(other for _, other in pairs)
    if not first or not second:
        return 0.0
    return fmean(one * other for one, other in pairs) / (first * second)
