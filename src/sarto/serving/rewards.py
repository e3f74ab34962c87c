"""User code of single answers (validateReinforcementTuningReward), in processes that handle one call each."""

from __future__ import annotations

from collections.abc import Sequence

from sarto.rewards.code_workers import CodeLimits, CodeWorkers
from sarto.rewards.scoring import Call, Scored
from sarto.serving.preparation.pool import ProjectSlots

SEATS, MOST_WAITING = 2, 64


class CodeService:
    """Projects take turns; a project runs one call at a time. Used from one event loop."""

    def __init__(self, limits: CodeLimits) -> None:
        self._slots = ProjectSlots(SEATS, MOST_WAITING)
        self._workers = CodeWorkers(SEATS, limits, keep=False)

    async def execute(self, project: str, snippet: str, calls: Sequence[Call]) -> list[Scored]:
        """Raises ResourceExhausted when too many calls of the project wait, and the errors of `CodeWorkers`."""
        await self._slots.enter(project)
        try:
            return await self._workers.execute(snippet, calls)
        finally:
            self._slots.leave(project)

    def close(self) -> None:
        self._workers.close()
