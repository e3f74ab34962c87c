"""Asking models many things at once, within a limit, so that one failure costs one answer and never the run.

`Generate` is the one seam between evaluation and whoever runs a model. Knows no metrics.
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
"""Before each new try of a model that is busy or away."""
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
    """Every row's answer in the order of rows. `on_answer` hears of each as it comes, for progress."""

    async def answer(row: EvaluationRow) -> Answer:
        request = row.request.model_copy(update={"generation_config": config})
        response = await ask(generate, request, pauses=pauses)
        found = (
            _read_answer(row.line, response)
            if isinstance(response, GenerateContentResponse)
            else Answer(row.line, error=response)
        )
        if on_answer is not None:
            on_answer(found)
        return found

    return await spread(rows, answer, concurrency)


async def ask(
    generate: Generate, request: GenerateContentRequest, *, pauses: tuple[float, ...] = PAUSES_SECONDS
) -> GenerateContentResponse | dict[str, Any]:
    """The response, or the status of the error. A model that is busy or away is asked again after each pause."""
    for pause in (*pauses, None):
        try:
            return await generate(request)
        except (ResourceExhausted, Unavailable) as error:
            if pause is None:
                return error.to_status()
            await asyncio.sleep(pause)
        except SartoError as error:
            return error.to_status()
        except Exception as error:  # whatever a model's doorway raises must cost one answer, not the evaluation
            logger.exception("model call failed")
            return Internal(f"the model call failed: {type(error).__name__}").to_status()
    raise AssertionError("the last try returns")


async def spread(items: Iterable[Item], work: Callable[[Item], Awaitable[Result]], concurrency: int) -> list[Result]:
    """Results in the order of items, at most `concurrency` under way; items are drawn as there is room."""
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
    """No candidate at all is an error of the model; an empty text is an answer, if a poor one."""
    if not response.candidates:
        return Answer(line, error=Internal("the model gave no candidate").to_status())
    candidate, usage = response.candidates[0], response.usage_metadata
    tokens = (usage.candidates_token_count or 0) if usage else 0
    reason = candidate.finish_reason.value if candidate.finish_reason else ""
    try:
        return Answer(line, reply_text(candidate.content), None, reason, tokens)
    except TypeError:  # what JSON cannot say, a call nested without end for example
        return Answer(line, error=Internal("the model's call cannot be written as JSON").to_status())
