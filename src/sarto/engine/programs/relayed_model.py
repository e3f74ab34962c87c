"""A model elsewhere behind evaluation's seam, `Generate`. A run has no network: it writes each request into a file of
its folder. The service (`control/runs/model_relay.py`) sends it and writes the response into another file."""

from __future__ import annotations

import asyncio
import json
import time
from itertools import count
from pathlib import Path
from typing import Any

from sarto.contract.model_relay import RelayRequest, RelayResponse
from sarto.contract.run_folder import ANSWERED_FILE, ASKED_FILE
from sarto.engine.evaluation.generate import Generate
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
from sarto.system.files import GrowingFile

LOOK_SECONDS = 0.02
GIVE_UP = 8
"""Consecutive failures after which an unreachable model is not called again."""
AWAY = (Unavailable, DeadlineExceeded, Unauthenticated, PermissionDenied, NotFound)


class RelayedModels:
    """Requests and responses of one run; used by one event loop at a time."""

    def __init__(self, run_folder: Path) -> None:
        self._requests = run_folder / ASKED_FILE
        self._answered = GrowingFile(run_folder / ANSWERED_FILE)
        self._numbers = count(1)
        self._answers: dict[int, RelayResponse] = {}
        self._looked = 0.0

    def asking(self, name: str) -> Generate:
        """A `Generate` for the model with this name; it stops calling the model after GIVE_UP consecutive failures."""
        failures: list[SartoError] = []

        async def generate(request: GenerateContentRequest) -> GenerateContentResponse:
            if len(failures) >= GIVE_UP:
                words = f"The autorater {name} failed {GIVE_UP} times in a row and is not called again"
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

    async def post(self, url: str, body: bytes, seconds: float) -> Any:
        """The JSON that a reward's URL answers. Raises SartoError."""
        question = RelayRequest(number=next(self._numbers), url=url, seconds=seconds, request=json.loads(body))
        answer = await self._answer(question)
        if answer.error is not None:
            raise from_status(answer.error)
        return (answer.response or {}).get("body")

    async def _ask(self, name: str, request: GenerateContentRequest) -> RelayResponse:
        return await self._answer(RelayRequest(number=next(self._numbers), judge=name, request=request.to_json()))

    async def _answer(self, question: RelayRequest) -> RelayResponse:
        with self._requests.open("ab") as file:
            file.write(question.model_dump_json().encode() + b"\n")
        while question.number not in self._answers:
            await asyncio.sleep(LOOK_SECONDS)
            self._look()
        return self._answers.pop(question.number)

    def _look(self) -> None:
        """Read new responses, once for all waiting requests."""
        if time.monotonic() - self._looked < LOOK_SECONDS / 2:
            return
        for line in self._answered.lines():
            answer = RelayResponse.model_validate_json(line)
            self._answers[answer.number] = answer
        self._looked = time.monotonic()
