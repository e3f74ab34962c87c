"""Turns between projects for the background loops, so that one project's work does not delay all others."""

from __future__ import annotations

import itertools
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping

from sarto.control.context import AnyRow


class RoundRobin:
    """Turns of projects. Not thread-safe: a loop with several threads needs its own lock."""

    def __init__(self) -> None:
        self._last: dict[str, int] = {}
        self._count = itertools.count(1)

    def next(self, waiting: Iterable[str], in_hand: Mapping[str, int], most: int) -> str | None:
        """Among the waiting projects, the one with the least running work, then the one whose last turn is oldest; None
        if each has `most` running. Ties keep the order of `waiting`."""
        free = [project for project in dict.fromkeys(waiting) if in_hand.get(project, 0) < most]
        if not free:
            return None
        self._last = {project: turn for project, turn in self._last.items() if project in free or in_hand.get(project)}
        chosen = min(free, key=lambda project: (in_hand.get(project, 0), self._last.get(project, 0)))
        self._last[chosen] = next(self._count)
        return chosen


class ProjectTurns:
    """Takes rows of work, the projects in turn, each with at most `most` in hand. Thread-safe."""

    def __init__(self, most: int) -> None:
        self._most, self._lock = most, threading.Lock()
        self._turns, self._in_hand = RoundRobin(), Counter[str]()

    def take(self, waiting: Callable[[], Iterable[str]], claim: Callable[[str], AnyRow | None]) -> AnyRow | None:
        """What `claim` gives for the project that is next of those `waiting`; it is in hand until `give_back`."""
        with self._lock:
            project = self._turns.next(waiting(), self._in_hand, self._most)
            row = claim(project) if project is not None else None
            if row is not None:
                self._in_hand[row.project] += 1
            return row

    def give_back(self, row: AnyRow) -> None:
        with self._lock:
            self._in_hand[row.project] -= 1
