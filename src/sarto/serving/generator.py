"""The seam to generation: what to generate with (`Target`) and whoever does it (`Generator`).

Knows no HTTP and no tensors; handlers call it, `worker_client` implements it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Protocol

from sarto.schema.generation import (
    Candidate,
    Content,
    CountTokensRequest,
    CountTokensResponse,
    GenerateContentRequest,
    GenerateContentResponse,
    LogprobsResult,
    Part,
)
from sarto.schema.runs import BaseWeights


@dataclass(frozen=True)
class Target:
    """Base weights and, for a tuned model, the folder of its PEFT adapter with the digest that names its bytes."""

    base: BaseWeights
    adapter_folder: str = ""
    adapter_digest: str = ""


class Generator(Protocol):
    def generate(self, target: Target, request: GenerateContentRequest) -> AsyncIterator[GenerateContentResponse]:
        """Chunks as they are produced; the last has usageMetadata, each candidate's last its finishReason.

        Closing the iterator (`aclose`) cancels. Raises InvalidArgument for what cannot be honoured, ResourceExhausted
        when the queue is full, Unavailable when the worker died.
        """
        ...

    async def count_tokens(self, target: Target, request: CountTokensRequest) -> CountTokensResponse: ...

    async def inspect(self, target: Target | None, method: str, payload: dict[str, Any]) -> dict[str, Any]:
        """Other questions by name: compute_tokens, prompt, token_texts, data_report, show_row, metrics."""
        ...

    async def metrics(self) -> dict[str, Any] | None:
        """What is in memory and at work; None while nothing runs, which this does not start."""
        ...

    async def close(self) -> None: ...


async def collect(chunks: AsyncIterator[GenerateContentResponse]) -> GenerateContentResponse:
    """The whole answer of a stream of chunks, as `generateContent` gives it."""
    whole = GenerateContentResponse()
    candidates: dict[int, Candidate] = {}
    async for chunk in chunks:
        whole.model_version, whole.response_id = chunk.model_version, chunk.response_id
        whole.create_time = chunk.create_time
        whole.usage_metadata = chunk.usage_metadata or whole.usage_metadata
        for piece in chunk.candidates:
            index = piece.index or 0
            if index in candidates:
                _join(candidates[index], piece)
            else:
                candidates[index] = piece
    whole.candidates = [candidates[index] for index in sorted(candidates)]
    return whole


def _join(candidate: Candidate, piece: Candidate) -> None:
    candidate.finish_reason = piece.finish_reason or candidate.finish_reason
    candidate.finish_message = piece.finish_message or candidate.finish_message
    candidate.safety_ratings = piece.safety_ratings or candidate.safety_ratings
    if piece.avg_logprobs is not None:
        candidate.avg_logprobs = piece.avg_logprobs
    if piece.logprobs_result is not None:
        so_far = candidate.logprobs_result or LogprobsResult()
        so_far.top_candidates += piece.logprobs_result.top_candidates
        so_far.chosen_candidates += piece.logprobs_result.chosen_candidates
        candidate.logprobs_result = so_far
    content = candidate.content or Content(role="model")
    for part in (piece.content or Content()).parts:
        last = content.parts[-1] if content.parts else None
        if last is not None and _is_plain_text(last) and _is_plain_text(part):
            content.parts[-1] = Part(text=(last.text or "") + (part.text or ""))
        else:
            content.parts.append(part)
    candidate.content = content


def _is_plain_text(part: Part) -> bool:
    return part.text is not None and not part.thought and part.function_call is None
