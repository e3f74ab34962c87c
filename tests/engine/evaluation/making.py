"""Rows and systems for evaluation tests: systems are plain coroutines behind the `Generate` seam."""

from __future__ import annotations

import json
from collections.abc import Callable

from sarto.engine.evaluation.answers import Answer
from sarto.engine.evaluation.generate import Generate
from sarto.engine.evaluation.rows import EvaluationRow, rows_from
from sarto.schema.generation import Candidate, Content, GenerateContentRequest, GenerateContentResponse, Part

Pair = tuple[str, str]


def reply(text: str) -> GenerateContentResponse:
    content = Content(role="model", parts=[Part(text=text)])
    return GenerateContentResponse(candidates=[Candidate(content=content, finish_reason="STOP")])


def asked(request: GenerateContentRequest) -> str:
    return request.contents[-1].parts[0].text or ""


def saying(answer: Callable[[str], str]) -> Generate:
    """A system that answers by a function of the last prompt."""

    async def generate(request: GenerateContentRequest) -> GenerateContentResponse:
        return reply(answer(asked(request)))

    return generate


def make_rows(pairs: list[Pair]) -> list[EvaluationRow]:
    """Rows from (prompt, reference), through the reader."""
    lines = [json.dumps({"prompt": prompt, "completion": completion}).encode() for prompt, completion in pairs]
    rows, faults = rows_from(lines)
    assert not faults
    return rows


def make_answers(rows: list[EvaluationRow], texts: list[str]) -> list[Answer]:
    return [Answer(row.line, text) for row, text in zip(rows, texts, strict=True)]
