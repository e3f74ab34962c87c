"""The parts that all scorers share: an answer to score, a score, and the calls that scorers make."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from sarto.schema.generation import GenerateContentRequest, GenerateContentResponse
from sarto.schema.rewards import ParseResponseConfig
from sarto.system.linear_regex import LinearPattern

T = TypeVar("T")
Call = tuple[Mapping[str, Any], Mapping[str, Any]]
"""The arguments `example` and `response` of user code."""


@dataclass(frozen=True)
class Sample:
    """An answer to score. `example` is the row and `response` a Content, both in camelCase."""

    example: Mapping[str, Any]
    response: Mapping[str, Any]
    step: int = 0
    job: str = "0"

    @property
    def text(self) -> str:
        """The text of the answer, without thoughts."""
        return text_of(self.response)


@dataclass(frozen=True)
class Scored:
    """One reward of one answer. `reward` is None if the scorer failed; then `failure` is the kind, and `message` the
    reason."""

    reward: float | None
    failure: str | None = None
    message: str = ""
    seconds: float = 0.0
    invalid_answer: bool = False
    """`parseResponseConfig` found nothing in the answer."""
    clipped: bool = False
    aux: str = ""
    """The `user_requested_aux_info` of a URL."""


@dataclass(frozen=True)
class Outcome:
    """The reward of one answer, None if one of its parts failed, and the parts by name."""

    reward: float | None
    details: dict[str, Scored] = field(default_factory=dict)


class Callers(Protocol):
    """The outside of the scorers: in a run, its engine and the relay; in the service, its models and threads."""

    async def ask(self, model: str, request: GenerateContentRequest) -> GenerateContentResponse:
        """The answer of a model, by its name in the config. Raises SartoError."""
        ...

    async def post(self, url: str, body: bytes, seconds: float) -> Any:
        """The JSON that a URL answers to a JSON body. Raises SartoError; Unavailable and ResourceExhausted may be
        tried again."""
        ...

    async def execute(self, snippet: str, calls: Sequence[Call]) -> list[Scored]:
        """The results of user code; `CodeWorkers.execute`."""
        ...

    async def compute(self, work: Callable[[], T]) -> T:
        """The result of a computation that may take seconds."""
        ...


@dataclass(frozen=True)
class Parsed:
    """A sample, and the part of its answer that scorers see: None if there is no such part."""

    sample: Sample
    text: str | None
    is_extract: bool = False

    @property
    def response(self) -> Mapping[str, Any]:
        """The Content that user code gets: the whole answer, or the part alone."""
        if not self.is_extract:
            return self.sample.response
        return {"role": "model", "parts": [{"text": self.text or ""}]}


class Scorer(Protocol):
    """Scores a batch: one result for each sample, in order, before clipping."""

    def score(self, batch: Sequence[Parsed]) -> Awaitable[list[Scored]]: ...


def pattern_of(config: ParseResponseConfig | None) -> LinearPattern | None:
    """None if the whole text is used."""
    return LinearPattern(config.regex_extract_expression) if config is not None and config.extracts else None


def text_of(content: Mapping[str, Any]) -> str:
    """The text of a Content in camelCase, without thoughts."""
    return "".join(part.get("text", "") for part in content.get("parts", ()) if not part.get("thought"))
