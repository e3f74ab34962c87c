"""A model of the serving engine behind evaluation's seam, `Generate`."""

from __future__ import annotations

import asyncio
from itertools import count
from typing import Any

from sarto.contract.common import BaseWeights
from sarto.engine.evaluation.generate import Generate
from sarto.engine.serving.adapter_pool import AdapterKey
from sarto.engine.serving.engine import Engine
from sarto.errors import SartoError
from sarto.schema.generation import GenerateContentRequest, GenerateContentResponse, append_chunk

_numbers = count(1)
Outcome = dict[str, Any] | SartoError | None


def asking(engine: Engine, base: BaseWeights, key: AdapterKey | None = None) -> Generate:
    """A `Generate` for this base and adapter."""

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
                append_chunk(whole, GenerateContentResponse.read(outcome))
        except asyncio.CancelledError:
            engine.cancel(number)
            raise
        return whole

    return generate
