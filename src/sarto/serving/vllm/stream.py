"""Parses vLLM's stream into the API's form: parts and function calls, log probabilities, token counts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sarto.engine.serving.reply_parser import Reply
from sarto.schema.generation import (
    Candidate,
    Content,
    FinishReason,
    LogprobsCandidate,
    LogprobsResult,
    Part,
    TopCandidates,
    UsageMetadata,
)


class ReplyStream:
    """The candidates of one request as they stream. `logprobs`: number of most probable tokens shown beside each; None
    for no log probabilities."""

    def __init__(self, candidates: int, functions: Iterable[str], end_ids: Iterable[int], logprobs: int | None) -> None:
        self._replies = [Reply(frozenset(functions)) for _ in range(candidates)]
        self._end_ids, self._logprobs = frozenset(end_ids), logprobs

    def token_ids(self, choices: Sequence[dict[str, Any]]) -> list[int]:
        """Tokens whose texts `read` needs."""
        if self._logprobs is None:
            return []
        logprobs = [choice.get("logprobs") or {} for choice in choices]
        names = [name for one in logprobs for name in one.get("tokens", ())]
        names += [name for one in logprobs for top in one.get("top_logprobs") or () for name in top or ()]
        return sorted({_number(name) for name in names})

    def read(self, choices: Sequence[dict[str, Any]], texts: Mapping[int, str]) -> list[Candidate]:
        """Parse a chunk. Text that may become a call stays in its reply."""
        candidates = []
        for choice in choices:
            reply, reason = self._replies[choice["index"]], _reason(choice.get("finish_reason"))
            parts = reply.push(choice["text"]) + (reply.finish() if reason else [])
            logprobs = self._result(choice.get("logprobs"), texts)
            if parts or reason or logprobs:
                content = Content(role="model", parts=[Part.model_validate(part) for part in parts or [{"text": ""}]])
                candidates.append(
                    Candidate(index=choice["index"], content=content, finish_reason=reason, logprobs_result=logprobs)
                )
        return candidates

    def _result(self, logprobs: dict[str, Any] | None, texts: Mapping[int, str]) -> LogprobsResult | None:
        """Log probabilities of all tokens except the one that ends the turn, in our own worker's form."""
        if self._logprobs is None or not logprobs:
            return None

        def shown(name: str, value: float) -> LogprobsCandidate:
            return LogprobsCandidate(token=texts[_number(name)], token_id=_number(name), log_probability=value)

        tops = logprobs.get("top_logprobs") or [None] * len(logprobs["tokens"])
        rows = [
            row
            for row in zip(logprobs["tokens"], logprobs["token_logprobs"], tops, strict=True)
            if _number(row[0]) not in self._end_ids
        ]
        if not rows:
            return None
        likeliest = [sorted((top or {}).items(), key=lambda pair: -pair[1])[: self._logprobs] for _, _, top in rows]
        return LogprobsResult(
            chosen_candidates=[shown(name, value) for name, value, _ in rows],
            top_candidates=[TopCandidates(candidates=[shown(*pair) for pair in top]) for top in likeliest],
        )


def usage_of(usage: dict[str, Any] | None) -> UsageMetadata | None:
    if usage is None:
        return None
    return UsageMetadata(
        prompt_token_count=usage["prompt_tokens"],
        candidates_token_count=usage["completion_tokens"],
        total_token_count=usage["total_tokens"],
        traffic_type="ON_DEMAND",
    )


def _number(name: str) -> int:
    """The id in `token_id:42`, vLLM's name of a token when ids are requested."""
    return int(name.removeprefix("token_id:"))


def _reason(reason: str | None) -> FinishReason | None:
    if reason is None:
        return None
    return {"stop": FinishReason.STOP, "length": FinishReason.MAX_TOKENS}.get(reason, FinishReason.OTHER)
