"""A model of the serving engine behind the one seam that evaluation has, `Generate`."""

from __future__ import annotations

import asyncio
from itertools import count
from typing import Any

from sarto.engine.evaluation.asking import Generate
from sarto.engine.serving.adapters import AdapterKey
from sarto.engine.serving.engine import Engine
from sarto.errors import SartoError
from sarto.schema.generation import GenerateContentRequest, GenerateContentResponse
from sarto.schema.runs import BaseWeights

_numbers = count(1)
Outcome = dict[str, Any] | SartoError | None


def asking(engine: Engine, base: BaseWeights, key: AdapterKey | None = None) -> Generate:
    """Whoever answers with this base and adapter."""

    async def generate(request: GenerateContentRequest) -> GenerateContentResponse:
        loop, outcomes = asyncio.get_running_loop(), asyncio.Queue[Outcome]()

        def deliver(outcome: Outcome) -> None:
            loop.call_soon_threadsafe(outcomes.put_nowait, outcome)

        number = next(_numbers)
        await asyncio.to_thread(engine.submit, number, base, key, request, deliver)
        whole = GenerateContentResponse()
        try:
            while (outcome := await outcomes.get()) is not None:
                if isinstance(outcome, SartoError):
                    raise outcome
                _add(whole, GenerateContentResponse.read(outcome))
        except asyncio.CancelledError:
            engine.cancel(number)
            raise
        return whole

    return generate


def _add(whole: GenerateContentResponse, chunk: GenerateContentResponse) -> None:
    """One candidate is all that evaluation asks for."""
    whole.usage_metadata = chunk.usage_metadata or whole.usage_metadata
    if not whole.candidates:
        whole.candidates = chunk.candidates[:1]
        return
    candidate = whole.candidates[0]
    for piece in chunk.candidates:
        candidate.finish_reason = piece.finish_reason or candidate.finish_reason
        if candidate.content is None:
            candidate.content = piece.content
        elif piece.content is not None:
            candidate.content.parts.extend(piece.content.parts)
