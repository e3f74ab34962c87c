"""The autorater: a model that scores an answer, asked several times; the mean of its scores is the reward."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from functools import partial
from statistics import fmean
from typing import Any

from sarto.errors import DeadlineExceeded, ResourceExhausted, SartoError, Unavailable
from sarto.rewards import template
from sarto.rewards.failures import LIMIT, NO_NUMBER, RPC_ERROR
from sarto.rewards.scoring import Callers, Parsed, Scored, pattern_of, text_of
from sarto.schema.evaluation import AutoraterConfig
from sarto.schema.generation import (
    Content,
    GenerateContentRequest,
    GenerateContentResponse,
    GenerationConfig,
    Part,
)
from sarto.schema.rewards import AutoraterScorer

SAMPLES = 4
MODEL_SECONDS = 60.0
"""Time for one score, with all retries."""
PAUSES_SECONDS = (0.5, 2.0, 8.0)
CONCURRENCY = 16
MOST_TOKENS = 512
MOST_QUOTE = 100


class Autorater:
    def __init__(self, config: AutoraterScorer, callers: Callers) -> None:
        self._prompt, self._callers = config.autorater_prompt, callers
        judge = config.autorater_config or AutoraterConfig()
        self._model, self._samples = judge.autorater_model, judge.sampling_count or SAMPLES
        self._generation = judge.generation_config or GenerationConfig()
        self._pattern = pattern_of(config.autorater_response_parse_config)
        self._exact = config.exact_match_scorer

    async def score(self, batch: Sequence[Parsed]) -> list[Scored]:
        room = asyncio.Semaphore(CONCURRENCY)
        return await asyncio.gather(*(self._mean(one, room) for one in batch))

    async def _mean(self, parsed: Parsed, room: asyncio.Semaphore) -> Scored:
        """The mean of the scores; it has failed if all of them have."""
        began, references = time.monotonic(), template.reference_values(parsed.sample.example)
        prompt = template.fill(self._prompt, references | _values(parsed))
        scores = await asyncio.gather(*(self._one(prompt, number, references, room) for number in range(self._samples)))
        good = [scored.reward for scored in scores if scored.reward is not None]
        seconds = time.monotonic() - began
        return (
            Scored(fmean(good), seconds=seconds)
            if good
            else Scored(None, scores[0].failure, scores[0].message, seconds)
        )

    async def _one(self, prompt: str, number: int, references: Mapping[str, str], room: asyncio.Semaphore) -> Scored:
        async with room:
            try:
                async with asyncio.timeout(MODEL_SECONDS):
                    reply = await self._asked(self._request(prompt, number))
            except TimeoutError:
                return Scored(None, RPC_ERROR, f"The autorater took more than {MODEL_SECONDS:g} seconds.")
            except SartoError as error:
                return Scored(None, RPC_ERROR, error.message)
        try:
            text = await self._callers.compute(partial(self._pattern.last, reply)) if self._pattern else reply
        except DeadlineExceeded as error:
            return Scored(None, LIMIT, error.message)
        if self._exact is not None:
            is_equal = text is not None and text == template.fill(self._exact.expression, references)
            return Scored((self._exact.correct_answer_reward if is_equal else self._exact.wrong_answer_reward) or 0.0)
        try:
            return Scored(float(text or ""))
        except ValueError:
            shown = reply if len(reply) <= MOST_QUOTE else f"{reply[:MOST_QUOTE]}…"
            return Scored(None, NO_NUMBER, f'The autorater\'s reply has no number: "{shown}".')

    async def _asked(self, request: GenerateContentRequest) -> str:
        response = await self._answered(request)
        content = response.candidates[0].content if response.candidates else None
        return text_of(content.to_json()) if content is not None else ""

    async def _answered(self, request: GenerateContentRequest) -> GenerateContentResponse:
        """The response, after retries of a model that is busy or not reached."""
        for pause in PAUSES_SECONDS:
            try:
                return await self._callers.ask(self._model, request)
            except (ResourceExhausted, Unavailable):
                await asyncio.sleep(pause)
        return await self._callers.ask(self._model, request)

    def _request(self, prompt: str, number: int) -> GenerateContentRequest:
        """Samples differ by seed; a single one is greedy."""
        config = self._generation
        update: dict[str, Any] = {"seed": (config.seed or 0) + number, "candidate_count": None}
        if config.temperature is None:
            update["temperature"] = 1.0 if self._samples > 1 else 0.0
        if config.max_output_tokens is None:
            update["max_output_tokens"] = MOST_TOKENS
        return GenerateContentRequest(
            contents=[Content(role="user", parts=[Part(text=prompt)])],
            generation_config=config.model_copy(update=update),
        )


def _values(parsed: Parsed) -> dict[str, str]:
    """The placeholders besides references. Of several turns each begins with its role."""
    example = parsed.sample.example
    turns = [(turn.get("role") or "user", text_of(turn)) for turn in example.get("contents", ())]
    prompt = turns[0][1] if len(turns) == 1 else "\n\n".join(f"{role}: {text}" for role, text in turns)
    return {
        template.PROMPT: prompt,
        template.RESPONSE: parsed.text or "",
        template.SYSTEM_INSTRUCTION: text_of(example.get("systemInstruction") or {}),
    }
