"""The scorers that call code of a user: a Python snippet, or a URL (Cloud Run)."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from sarto.errors import ResourceExhausted, SartoError, Unavailable
from sarto.rewards.failures import NO_NUMBER, RPC_ERROR
from sarto.rewards.scoring import Callers, Parsed, Scored
from sarto.schema.rewards import CloudRunRewardScorer, CodeExecutionRewardScorer

CONCURRENCY = 16
URL_SECONDS = 300.0
"""Time for the score of one answer by a URL, with all retries."""
PAUSES_SECONDS = (2.0, 4.0, 8.0, 16.0, 32.0)
MOST_AUX = 10_000


class CodeExecution:
    def __init__(self, config: CodeExecutionRewardScorer, callers: Callers) -> None:
        self._snippet, self._callers = config.python_code_snippet, callers

    async def score(self, batch: Sequence[Parsed]) -> list[Scored]:
        return await self._callers.execute(self._snippet, [(one.sample.example, one.response) for one in batch])


class CloudRun:
    """Retries after 2 to 32 seconds, while the URL is busy or not reached."""

    def __init__(
        self, config: CloudRunRewardScorer, callers: Callers, pauses: tuple[float, ...] = PAUSES_SECONDS
    ) -> None:
        self._url, self._callers, self._pauses = config.cloud_run_uri, callers, pauses

    async def score(self, batch: Sequence[Parsed]) -> list[Scored]:
        room = asyncio.Semaphore(CONCURRENCY)
        return await asyncio.gather(*(self._score(one, room) for one in batch))

    async def _score(self, parsed: Parsed, room: asyncio.Semaphore) -> Scored:
        async with room:
            began = time.monotonic()
            scored = await self._called(_body(parsed), began + URL_SECONDS)
            return replace(scored, seconds=time.monotonic() - began)

    async def _called(self, body: bytes, until: float) -> Scored:
        for pause in (*self._pauses, None):
            try:
                return _read(await self._callers.post(self._url, body, until - time.monotonic()))
            except (ResourceExhausted, Unavailable) as error:
                if pause is None or time.monotonic() + pause >= until:
                    return Scored(None, RPC_ERROR, error.message)
                await asyncio.sleep(pause)
            except SartoError as error:
                return Scored(None, RPC_ERROR, error.message)
        raise AssertionError("the last try returns")


def _body(parsed: Parsed) -> bytes:
    """As Google's service sends it. JavaScript rounds the number of the job, so its digits are sent as text too."""
    sample = parsed.sample
    job = {"tuning_job_id": int(sample.job), "tuning_job": sample.job}
    body = {"example": sample.example, "response": parsed.response, "metadata": {"step": sample.step, **job}}
    return json.dumps(body).encode()


def _read(reply: Any) -> Scored:
    reward = reply.get("reward") if isinstance(reply, dict) else None
    if reward in ("NaN", "Infinity", "-Infinity"):
        reward = float(reward)
    if isinstance(reward, bool) or not isinstance(reward, int | float):
        return Scored(None, NO_NUMBER, 'The URL must answer with a JSON object that has a number "reward".')
    aux = reply.get("user_requested_aux_info")
    return Scored(float(reward), aux=aux[:MOST_AUX] if isinstance(aux, str) else "")
