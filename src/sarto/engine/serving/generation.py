"""One request while it is served: its candidates, token by token, and the response's chunks in the API's form.

Knows no tensors and no batch. The scheduler passes it tokens; the caller receives the chunks through `deliver`.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from sarto.engine.rendering.tokenizer import TokenDecoder
from sarto.engine.serving.adapter_pool import AdapterKey
from sarto.engine.serving.grammar_masks import GrammarConstraint
from sarto.engine.serving.grammars import Grammar
from sarto.engine.serving.linear import Adapter
from sarto.engine.serving.reply_parser import Reply
from sarto.engine.serving.request import PreparedRequest
from sarto.engine.serving.runner import Row
from sarto.engine.serving.sampling import SampledToken, Sampler
from sarto.engine.serving.text_stream import TextStream
from sarto.errors import SartoError
from sarto.names import asker
from sarto.schema.wire import format_time, now

Deliver = Callable[[dict[str, Any] | SartoError | None], object]
"""Receives every chunk as JSON, then None; or, at any time, the error that ends the response."""


@dataclass(frozen=True)
class EngineRequest:
    """A request for the engine: parsed, with its adapter read from disk unless that was resident. Prompts are cached
    for requests of the same `tenant` only."""

    number: int
    prepared: PreparedRequest
    grammar: Grammar | None
    tokenizer: TokenDecoder
    model_version: str
    key: AdapterKey | None
    staged: Adapter | None
    deliver: Deliver
    tenant: str = ""

    @property
    def project(self) -> str:
        """The project of the request; projects take turns."""
        return asker(self.tenant)


@dataclass(eq=False)
class Candidate:
    """One candidate of the response. `row` is set while it decodes."""

    index: int
    sampler: Sampler
    text: TextStream
    reply: Reply
    row: Row | None = None
    tokens: int = 0
    logprob_sum: float = 0.0
    finish_reason: str = ""
    unsent: list[SampledToken] = field(default_factory=list)


class Generation:
    """A request from admission to its last chunk."""

    def __init__(self, request: EngineRequest) -> None:
        self.request = request
        prepared, grammar = request.prepared, request.grammar
        self.candidates = [
            Candidate(
                index,
                Sampler(prepared.sampling, index, GrammarConstraint(grammar.matcher()) if grammar else None),
                TextStream(request.tokenizer.stream(), prepared.stops),
                Reply(prepared.functions),
            )
            for index in range(prepared.candidates)
        ]
        self.known_tokens = 0
        """Prompt tokens that were already in the cache."""
        self._head: dict[str, Any] = {
            "modelVersion": request.model_version,
            "responseId": uuid.uuid4().hex,
            "createTime": format_time(now()),
        }

    @property
    def needed_tokens(self) -> int:
        """Most cache tokens that this request may need."""
        prepared = self.request.prepared
        return prepared.candidates * (len(prepared.prompt) + prepared.max_tokens)

    @property
    def is_finished(self) -> bool:
        return all(candidate.finish_reason for candidate in self.candidates)

    def take(self, candidate: Candidate, pick: SampledToken) -> None:
        """Append a token to a candidate, which may finish it, and deliver the text that becomes final."""
        text = ""
        if pick.token in self.request.prepared.end_ids:
            candidate.finish_reason = "STOP"
        else:
            candidate.tokens += 1
            candidate.logprob_sum += pick.logprob
            candidate.unsent.append(pick)
            text = candidate.text.push(pick.token)
            if candidate.text.is_stopped or candidate.sampler.is_complete:
                candidate.finish_reason = "STOP"
            elif candidate.tokens >= self.request.prepared.max_tokens:
                candidate.finish_reason = "MAX_TOKENS"
        parts = candidate.reply.push(text)
        if candidate.finish_reason:
            parts += candidate.reply.push(candidate.text.finish()) + candidate.reply.finish()
        if parts or candidate.finish_reason:
            self.request.deliver(self._chunk(candidate, parts))
        if self.is_finished:
            self.request.deliver(None)

    def _chunk(self, candidate: Candidate, parts: list[dict[str, Any]]) -> dict[str, Any]:
        # Clients drop a turn from their history when one of its contents has no parts.
        content = {"role": "model", "parts": parts or [{"text": ""}]}
        shown: dict[str, Any] = {"index": candidate.index, "content": content}
        if candidate.finish_reason:
            shown["finishReason"] = candidate.finish_reason
            shown["avgLogprobs"] = candidate.logprob_sum / max(candidate.tokens, 1)
        if self.request.prepared.sampling.logprobs is not None and candidate.unsent:
            shown["logprobsResult"] = {
                "chosenCandidates": [self._logprob(pick.token, pick.logprob) for pick in candidate.unsent],
                "topCandidates": [
                    {"candidates": [self._logprob(*other) for other in pick.top]} for pick in candidate.unsent
                ],
            }
        candidate.unsent = []
        chunk: dict[str, Any] = {"candidates": [shown], **self._head}
        if self.is_finished:
            chunk["usageMetadata"] = self._usage()
        return chunk

    def _logprob(self, token: int, logprob: float) -> dict[str, Any]:
        return {"token": self.request.tokenizer.token_text(token), "tokenId": token, "logProbability": logprob}

    def _usage(self) -> dict[str, Any]:
        prompt = len(self.request.prepared.prompt)
        answer = sum(candidate.tokens for candidate in self.candidates)
        usage: dict[str, Any] = {
            "promptTokenCount": prompt,
            "candidatesTokenCount": answer,
            "totalTokenCount": prompt + answer,
            "promptTokensDetails": [{"modality": "TEXT", "tokenCount": prompt}],
            "candidatesTokensDetails": [{"modality": "TEXT", "tokenCount": answer}],
            "trafficType": "ON_DEMAND",
        }
        if self.known_tokens:
            usage["cachedContentTokenCount"] = self.known_tokens
        return usage
