"""Concurrent generation with a limit; a failed request costs one answer and not the run.

`Generate` is the only seam between evaluation and the models. Knows no metrics.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import Any, TypeVar

from sarto.engine.evaluation.answers import Answer
from sarto.engine.evaluation.rows import EvaluationRow, reply_text
from sarto.errors import Internal, ResourceExhausted, SartoError, Unavailable
from sarto.schema.generation import GenerateContentRequest, GenerateContentResponse, GenerationConfig

logger = logging.getLogger(__name__)

Generate = Callable[[GenerateContentRequest], Awaitable[GenerateContentResponse]]
PAUSES_SECONDS = (0.5, 2.0, 8.0)
"""Pause before each retry of a model that is busy or unreachable."""
Item = TypeVar("Item")
Result = TypeVar("Result")


async def answer_rows(
    rows: Iterable[EvaluationRow],
    generate: Generate,
    *,
    config: GenerationConfig | None = None,
    concurrency: int = 8,
    pauses: tuple[float, ...] = PAUSES_SECONDS,
    on_answer: Callable[[Answer], None] | None = None,
) -> list[Answer]:
    """The answers of all rows, in order. `on_answer` is called with each answer as it is finished."""

    async def answer(row: EvaluationRow) -> Answer:
        request = row.request.model_copy(update={"generation_config": config})
        response = await ask(generate, request, pauses=pauses)
        reply = (
            _read_answer(row.line, response)
            if isinstance(response, GenerateContentResponse)
            else Answer(row.line, error=response)
        )
        if on_answer is not None:
            on_answer(reply)
        return reply

    return await spread(rows, answer, concurrency)


async def ask(
    generate: Generate, request: GenerateContentRequest, *, pauses: tuple[float, ...] = PAUSES_SECONDS
) -> GenerateContentResponse | dict[str, Any]:
    """The response, or the status of the error. A model that is busy or unreachable is retried after each pause."""
    for pause in (*pauses, None):
        try:
            return await generate(request)
        except (ResourceExhausted, Unavailable) as error:
            if pause is None:
                return error.to_status()
            await asyncio.sleep(pause)
        except SartoError as error:
            return error.to_status()
        except Exception as error:  # any error of a model fails one answer, not the evaluation
            logger.exception("model call failed")
            return Internal(f"The model call failed: {type(error).__name__}").to_status()
    raise AssertionError("the last try returns")


async def spread(items: Iterable[Item], work: Callable[[Item], Awaitable[Result]], concurrency: int) -> list[Result]:
    """Results in the order of items, with at most `concurrency` in progress. Items are drawn when one can start."""
    results: dict[int, Result] = {}
    waiting: Iterator[tuple[int, Item]] = iter(enumerate(items))

    async def draw() -> None:
        for index, item in waiting:
            results[index] = await work(item)

    async with asyncio.TaskGroup() as group:
        for _ in range(max(1, concurrency)):
            group.create_task(draw())
    return [results[index] for index in range(len(results))]


def _read_answer(line: int, response: GenerateContentResponse) -> Answer:
    """The answer in a response. A response without a candidate is an error of the model; an empty text is an answer."""
    if not response.candidates:
        return Answer(line, error=Internal("The model returned no candidate.").to_status())
    candidate, usage = response.candidates[0], response.usage_metadata
    tokens = (usage.candidates_token_count or 0) if usage else 0
    reason = candidate.finish_reason.value if candidate.finish_reason else ""
    try:
        return Answer(line, reply_text(candidate.content), None, reason, tokens)
    except TypeError:  # not representable in JSON, such as a call with endless nesting
        return Answer(line, error=Internal("The model's call cannot be written as JSON.").to_status())
