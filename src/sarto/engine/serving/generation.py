"""One request while it is served: its candidates, token by token, and the answer's chunks as the API shows them.

Knows no tensors and no batch. The scheduler feeds it tokens; whoever asked gets the chunks through `deliver`.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from sarto.engine.data.tokenizer import ChatTokenizer
from sarto.engine.serving.adapters import AdapterKey
from sarto.engine.serving.products import Adapter
from sarto.engine.serving.reply import Reply
from sarto.engine.serving.request import Wanted
from sarto.engine.serving.runner import Row
from sarto.engine.serving.sampling import Pick, Sampler
from sarto.engine.serving.text import TextStream
from sarto.errors import SartoError
from sarto.schema.wire import format_time, now

Deliver = Callable[[dict[str, Any] | SartoError | None], object]
"""Takes every chunk as JSON, then None; or, at any time, the error that ends the answer."""


@dataclass(frozen=True)
class Order:
    """A request as the engine takes it in: read, its adapter named and read from disk unless it was in memory."""

    number: int
    wanted: Wanted
    tokenizer: ChatTokenizer
    model_version: str
    key: AdapterKey | None
    staged: Adapter | None
    deliver: Deliver


@dataclass(eq=False)
class Candidate:
    """One of the answers. `row` is set while it decodes."""

    index: int
    sampler: Sampler
    text: TextStream
    reply: Reply
    row: Row | None = None
    tokens: int = 0
    logprob_sum: float = 0.0
    finish_reason: str = ""
    unsent: list[Pick] = field(default_factory=list)


class Generation:
    """A request from admission to its last chunk."""

    def __init__(self, order: Order) -> None:
        self.order = order
        wanted = order.wanted
        self.candidates = [
            Candidate(
                index,
                Sampler(wanted.sampling, index, wanted.grammar.constraint() if wanted.grammar else None),
                TextStream(order.tokenizer.stream(), wanted.stops),
                Reply(wanted.functions),
            )
            for index in range(wanted.candidates)
        ]
        self.known_tokens = 0
        """Prompt tokens that another request had left in the cache."""
        self._head: dict[str, Any] = {
            "modelVersion": order.model_version,
            "responseId": uuid.uuid4().hex,
            "createTime": format_time(now()),
        }

    @property
    def needed_tokens(self) -> int:
        """Cache places this request may come to fill."""
        wanted = self.order.wanted
        return wanted.candidates * (len(wanted.prompt) + wanted.max_tokens)

    @property
    def is_finished(self) -> bool:
        return all(candidate.finish_reason for candidate in self.candidates)

    def take(self, candidate: Candidate, pick: Pick) -> None:
        """Add a token to a candidate, which may finish it, and deliver what that makes certain."""
        text = ""
        if pick.token in self.order.tokenizer.end_of_turn_ids:
            candidate.finish_reason = "STOP"
        else:
            candidate.tokens += 1
            candidate.logprob_sum += pick.logprob
            candidate.unsent.append(pick)
            text = candidate.text.push(pick.token)
            if candidate.text.is_stopped or candidate.sampler.is_complete:
                candidate.finish_reason = "STOP"
            elif candidate.tokens >= self.order.wanted.max_tokens:
                candidate.finish_reason = "MAX_TOKENS"
        parts = candidate.reply.push(text)
        if candidate.finish_reason:
            parts += candidate.reply.push(candidate.text.finish()) + candidate.reply.finish()
        if parts or candidate.finish_reason:
            self.order.deliver(self._chunk(candidate, parts))
        if self.is_finished:
            self.order.deliver(None)

    def _chunk(self, candidate: Candidate, parts: list[dict[str, Any]]) -> dict[str, Any]:
        shown: dict[str, Any] = {"index": candidate.index, "content": {"role": "model", "parts": parts}}
        if candidate.finish_reason:
            shown["finishReason"] = candidate.finish_reason
            shown["avgLogprobs"] = candidate.logprob_sum / max(candidate.tokens, 1)
        if self.order.wanted.sampling.logprobs is not None and candidate.unsent:
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
        return {"token": self.order.tokenizer.token_text(token), "tokenId": token, "logProbability": logprob}

    def _usage(self) -> dict[str, Any]:
        prompt = len(self.order.wanted.prompt)
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
