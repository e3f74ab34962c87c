"""A model elsewhere behind the one seam that evaluation has, `Generate`. A run has no network: it writes each question
into a file of its folder, the service asks (`control/question_desk.py`) and writes the answer into another.
"""

from __future__ import annotations

import asyncio
import time
from itertools import count
from pathlib import Path

from sarto.engine.evaluation.asking import Generate
from sarto.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    NotFound,
    PermissionDenied,
    SartoError,
    Unauthenticated,
    Unavailable,
    from_status,
)
from sarto.schema.generation import GenerateContentRequest, GenerateContentResponse
from sarto.schema.runs import ANSWERED_FILE, ASKED_FILE, OutsideAnswer, OutsideQuestion
from sarto.storage.growing import GrowingFile

LOOK_SECONDS = 0.02
GIVE_UP = 8
"""Failures in a row after which a model that is away is not asked again."""
AWAY = (Unavailable, DeadlineExceeded, Unauthenticated, PermissionDenied, NotFound)


class Outside:
    """Questions and answers of one run; lives on one event loop at a time."""

    def __init__(self, run_folder: Path) -> None:
        self._asked = run_folder / ASKED_FILE
        self._answered = GrowingFile(run_folder / ANSWERED_FILE)
        self._numbers = count(1)
        self._answers: dict[int, OutsideAnswer] = {}
        self._looked = 0.0

    def asking(self, name: str) -> Generate:
        """Whoever answers under that name; gives up on it for good when it is away again and again."""
        failures: list[SartoError] = []

        async def generate(request: GenerateContentRequest) -> GenerateContentResponse:
            if len(failures) >= GIVE_UP:
                words = f"The autorater {name} failed {GIVE_UP} times in a row and is not asked again"
                raise FailedPrecondition(f"{words}: {failures[-1].message}")
            answer = await self._ask(name, request)
            if answer.error is None:
                failures.clear()
                return GenerateContentResponse.read(answer.response or {})
            error = from_status(answer.error)
            if isinstance(error, AWAY):
                failures.append(error)
            raise error

        return generate

    async def _ask(self, name: str, request: GenerateContentRequest) -> OutsideAnswer:
        question = OutsideQuestion(number=next(self._numbers), judge=name, request=request.to_json())
        with self._asked.open("ab") as file:
            file.write(question.model_dump_json().encode() + b"\n")
        while question.number not in self._answers:
            await asyncio.sleep(LOOK_SECONDS)
            self._look()
        return self._answers.pop(question.number)

    def _look(self) -> None:
        """Once for all that wait."""
        if time.monotonic() - self._looked < LOOK_SECONDS / 2:
            return
        for line in self._answered.lines():
            answer = OutsideAnswer.model_validate_json(line)
            self._answers[answer.number] = answer
        self._looked = time.monotonic()
