"""The answers of a distillation's teacher, each generated once.

They go into a file of the resume folder as they come. The next attempt continues after the last whole line.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from sarto.contract.common import Teaching
from sarto.contract.tuning_run import RunSpec
from sarto.conversations.examples import Example, FunctionCall, RowFault, Turn
from sarto.conversations.generation_request import request_of
from sarto.engine.evaluation.generate import Generate, ask, spread
from sarto.engine.models.decoder import Decoder
from sarto.engine.programs.local_model import asking
from sarto.engine.programs.relayed_model import RelayedModels
from sarto.engine.rendering.chat_template import split_thought
from sarto.engine.serving.adapter_pool import AdapterKey
from sarto.engine.serving.engine import Engine, EngineOptions
from sarto.errors import FailedPrecondition, Internal, InvalidArgument, OutOfRange
from sarto.schema.generation import GenerateContentRequest, GenerateContentResponse, GenerationConfig

CONCURRENCY = 32
MOST_TOKENS = 2048
"""Most tokens of an answer."""
SEEDS = 2**31
OF_THE_ROW = (InvalidArgument.code, OutOfRange.code, Internal.code)
"""Codes of errors that cost one answer; any other ends the run."""
TOLD = 10
"""Progress is told after each of so many parts of the answers."""


@dataclass(frozen=True)
class Question:
    """A prompt. `room`: most tokens of its answer."""

    line: int
    prompt: Example
    room: int


@dataclass(frozen=True)
class TeacherAnswer:
    """An answer as it came, or the google.rpc.Status of its failure."""

    line: int
    candidate: int
    parts: list[dict[str, Any]]
    finish_reason: str = ""
    error: dict[str, Any] | None = None

    def turn(self, *, with_thought: bool) -> Turn:
        """The reply to learn. Raises RowFault for an answer that is none."""
        if self.error is not None:
            raise RowFault("", f"a prompt without answer: {self.error['message']}", "an answer", "change the prompt")
        texts = [part for part in self.parts if "text" in part]
        calls = [part["functionCall"] for part in self.parts if "functionCall" in part]
        turn = split_thought(
            Turn(
                "model",
                "".join(part["text"] for part in texts if not part.get("thought")),
                tuple(FunctionCall(call["name"], call.get("args", {}), call.get("id", "")) for call in calls),
                (),
                "".join(part["text"] for part in texts if part.get("thought")),
            )
        )
        if self.finish_reason == "MAX_TOKENS":
            raise RowFault("", "a cut answer of the teacher", "a whole one", "shorten the prompt, or ask for less")
        if self.finish_reason != "STOP":
            seen = f"an answer of the teacher that ended with {self.finish_reason or 'nothing'}"
            raise RowFault("", seen, "one that ended with STOP", "change the prompt")
        if not turn.text.strip() and not turn.calls:
            raise RowFault("", "an empty answer of the teacher", "text or a function call", "change the prompt")
        return turn if with_thought else Turn(turn.role, turn.text, turn.calls)


def answers(
    path: Path,
    questions: Iterable[Question],
    total: int,
    teaching: Teaching,
    generate: Generate,
    say: Callable[[str], None],
) -> dict[tuple[int, int], TeacherAnswer]:
    """All answers by line and candidate. `total` is the number of questions. Raises FailedPrecondition when the
    teacher cannot be used any more."""
    known = _read(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    wanted, before = total * teaching.candidates, len(known)
    if before < wanted:
        more = f", after {before:,} that an earlier attempt got" if before else ""
        say(f"{teaching.teacher} answers {wanted:,} times{more}.")
        with path.open("ab") as file:
            _Asking(known, wanted, teaching, generate, say, file.write, file.flush).run(questions)
        say(f"Labelled {len(known):,} of {wanted:,}.")
    return known


def _read(path: Path) -> dict[tuple[int, int], TeacherAnswer]:
    """The answers in a file, which loses an unfinished line at its end."""
    if not path.exists():
        return {}
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    if whole < len(data):
        with path.open("r+b") as file:
            file.truncate(whole)
    found = (TeacherAnswer(**orjson.loads(line)) for line in data[:whole].splitlines())
    return {(each.line, each.candidate): each for each in found}


@dataclass
class _Asking:
    known: dict[tuple[int, int], TeacherAnswer]
    wanted: int
    teaching: Teaching
    generate: Generate
    say: Callable[[str], None]
    write: Callable[[bytes], object]
    flush: Callable[[], object]
    fault: dict[str, Any] | None = None
    """The status for which the teacher is not asked again."""

    def run(self, questions: Iterable[Question]) -> None:
        left = (
            (question, number)
            for question in questions
            for number in range(self.teaching.candidates)
            if (question.line, number) not in self.known
        )
        asyncio.run(spread(left, self._one, CONCURRENCY))
        if self.fault is not None:
            raise FailedPrecondition(
                f"The teacher {self.teaching.teacher} stopped answering after {len(self.known):,} of {self.wanted:,}"
                f" answers: {self.fault['message']}"
            )

    async def _one(self, item: tuple[Question, int]) -> None:
        if self.fault is not None:
            return
        question, number = item
        config = self.teaching.generation | {
            "temperature": self.teaching.temperature,
            "maxOutputTokens": question.room,
            "seed": (question.line * self.teaching.candidates + number) % SEEDS,
        }
        request = request_of(question.prompt).model_copy(update={"generation_config": GenerationConfig.read(config)})
        outcome = await ask(self.generate, request)
        if isinstance(outcome, GenerateContentResponse):
            answer = _answer(question.line, number, outcome)
        elif outcome["code"] in OF_THE_ROW:
            answer = TeacherAnswer(question.line, number, [], error=outcome)
        else:
            self.fault = outcome
            return
        self.write(orjson.dumps(answer) + b"\n")
        self.flush()
        self.known[question.line, number] = answer
        done, part = len(self.known), max(1, self.wanted // TOLD)
        if done % part == 0 and done < self.wanted:
            self.say(f"Labelled {done:,} of {self.wanted:,}.")


def _answer(line: int, number: int, response: GenerateContentResponse) -> TeacherAnswer:
    if not response.candidates:
        return TeacherAnswer(line, number, [], error=Internal("The model returned no candidate.").to_status())
    candidate = response.candidates[0]
    parts = [part.to_json() for part in candidate.content.parts] if candidate.content else []
    return TeacherAnswer(line, number, parts, candidate.finish_reason.value if candidate.finish_reason else "")


@contextmanager
def teacher(spec: RunSpec, decoder: Decoder | None, outside: RelayedModels) -> Iterator[Generate]:
    """The teacher, which is unloaded at the end of the block."""
    assert spec.teaching is not None
    model = spec.teaching.model
    if model is None:
        yield _of_text(outside.asking(spec.teaching.teacher))
        return
    dtype = "int8" if spec.serve_int8 else spec.dtype
    engine = Engine(EngineOptions(threads=spec.threads, device=spec.device, dtype=dtype))
    key = AdapterKey(model.adapter_digest, model.adapter_folder) if model.adapter_folder else None
    try:
        if decoder is not None and model.base == spec.base:
            engine.lend(model.base, decoder)
        yield asking(engine, model.base, key)
    finally:
        engine.give_back(model.base)
        engine.close()


def _of_text(generate: Generate) -> Generate:
    """A model elsewhere, which gets texts only."""

    async def checked(request: GenerateContentRequest) -> GenerateContentResponse:
        if request.tools or any(part.text is None for content in request.contents for part in content.parts):
            raise InvalidArgument("A teacher elsewhere gets texts only, and the row has functions.")
        return await generate(request)

    return checked
