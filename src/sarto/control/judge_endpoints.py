"""Models elsewhere that an administrator lets jobs have as judges: one request of ours becomes one HTTP call.

Two forms: OpenAI's chat completions and Gemini's generateContent. A reply is text and a finish reason, nothing else is
read. Keys stay here: no message, no spec and no log holds one.
"""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import orjson

from sarto.control import addresses
from sarto.errors import (
    FailedPrecondition,
    Internal,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    SartoError,
    Unauthenticated,
    Unavailable,
)

MOST_ANSWER_BYTES = 1 << 20
MOST_PAUSE_SECONDS = 60.0
"""How long a judge that says when to come back is waited for."""
KINDS: dict[int, type[SartoError]] = {
    400: InvalidArgument, 401: Unauthenticated, 403: PermissionDenied, 404: NotFound, 408: Unavailable,
    425: Unavailable, 429: ResourceExhausted,
}  # fmt: skip
FINISH_REASONS = {"stop": "STOP", "length": "MAX_TOKENS", "content_filter": "SAFETY"}
LEFT_OUT = frozenset({"propertyOrdering", "maxLength"})
"""Of a schema, what OpenAI's strict form does not take: the one has no name there, the other is refused."""


@dataclass(frozen=True)
class JudgeEndpoint:
    """`base_url` ends before `/chat/completions` or `/models/MODEL:generateContent`."""

    name: str
    kind: Literal["openai", "gemini"]
    base_url: str
    model: str
    key: str = field(default="", repr=False)
    allow_private: bool = False
    replies: Literal["schema", "json"] = "schema"
    token_limit: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    timeout_seconds: float = 60.0
    concurrency: int = 8
    room: threading.BoundedSemaphore = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "room", threading.BoundedSemaphore(self.concurrency))

    def target(self) -> addresses.Target:
        """Raises InvalidArgument for an address that cannot be called."""
        path = "chat/completions"
        if self.kind == "gemini":
            path = f"{self.model if '/' in self.model else f'models/{self.model}'}:generateContent"
        url = f"{self.base_url.rstrip('/')}/{path}"
        return addresses.parse(url, f"judges.{self.name}.base_url", self.allow_private, "private_address = true")


def ask_one(
    judges: Mapping[str, JudgeEndpoint],
    name: str,
    request: dict[str, Any],
    pause: Callable[[float], object] = time.sleep,
) -> dict[str, Any]:
    """`ask` by name. Raises FailedPrecondition for one that is not there any more."""
    if name not in judges:
        raise FailedPrecondition(f"The autorater {name} is not configured on this server any more.")
    return ask(judges[name], request, pause)


def ask(judge: JudgeEndpoint, request: dict[str, Any], pause: Callable[[float], object] = time.sleep) -> dict[str, Any]:
    """A GenerateContentRequest as JSON, answered by a GenerateContentResponse. Raises SartoError: Unavailable and
    ResourceExhausted for what may pass, after the pause that the endpoint asks for."""
    body, headers = (_to_openai if judge.kind == "openai" else _to_gemini)(judge, request)
    headers |= {"content-type": "application/json", "accept": "application/json", "user-agent": "sarto"}
    with judge.room:
        try:
            answer = addresses.post(
                judge.target(), orjson.dumps(body), headers, judge.timeout_seconds, MOST_ANSWER_BYTES
            )
        except (OSError, http.client.HTTPException) as error:
            raise Unavailable(f"{judge.name} could not be reached: {type(error).__name__}") from None
        if answer.status == 429 and answer.retry_after.isdigit():
            pause(min(float(answer.retry_after), MOST_PAUSE_SECONDS))
    found = _read(answer.body)
    if answer.status != 200:
        kind = KINDS.get(answer.status, Unavailable if answer.status >= 500 else FailedPrecondition)
        raise kind(f"{judge.name} answered HTTP {answer.status}{_words(judge, found)}")
    text, reason = (_from_openai if judge.kind == "openai" else _from_gemini)(found)
    if text is None:
        raise Internal(f"{judge.name} answered without a text ({reason or 'not in the form of ' + judge.kind})")
    content = {"role": "model", "parts": [{"text": text}]}
    return {"candidates": [{"content": content, "finishReason": reason}]}


def _to_openai(judge: JudgeEndpoint, request: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    config = request.get("generationConfig", {})
    messages = []
    if "systemInstruction" in request:
        messages.append({"role": "system", "content": _text(request["systemInstruction"])})
    for content in request["contents"]:
        role = "assistant" if content.get("role") == "model" else "user"
        messages.append({"role": role, "content": _text(content)})
    given = {
        "temperature": config.get("temperature"),
        "top_p": config.get("topP"),
        "seed": config.get("seed"),
        "stop": config.get("stopSequences"),
        judge.token_limit: config.get("maxOutputTokens"),
    }
    body: dict[str, Any] = {"model": judge.model, "messages": messages}
    body |= {name: value for name, value in given.items() if value is not None}
    if config.get("responseMimeType") == "application/json":
        schema = {"name": "verdict", "strict": True, "schema": _json_schema(config["responseSchema"])}
        is_held = judge.replies == "schema"
        body["response_format"] = {"type": "json_schema", "json_schema": schema} if is_held else {"type": "json_object"}
    return body, {"authorization": f"Bearer {judge.key}"} if judge.key else {}


def _to_gemini(judge: JudgeEndpoint, request: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    config = dict(request.get("generationConfig", {}))
    if judge.replies == "json":
        config.pop("responseSchema", None)
    body = {**request, "generationConfig": config}
    return body, {"x-goog-api-key": judge.key} if judge.key else {}


def _json_schema(schema: dict[str, Any]) -> dict[str, Any]:
    """Our schema of a verdict in JSON Schema's words."""
    found = {name: value for name, value in schema.items() if name not in LEFT_OUT}
    found["type"] = schema["type"].lower()
    if "properties" in found:
        found["properties"] = {name: _json_schema(inner) for name, inner in schema["properties"].items()}
        found["additionalProperties"] = False
    return found


def _from_openai(found: Any) -> tuple[str | None, str]:
    """Text and finish reason; no text where the reply has none."""
    try:
        choice = found["choices"][0]
        text, refusal = choice["message"].get("content"), choice["message"].get("refusal")
        reason = FINISH_REASONS.get(choice.get("finish_reason"), "OTHER")
    except (KeyError, IndexError, TypeError, AttributeError):
        return None, ""
    return (text, reason) if isinstance(text, str) else (None, "it refused" if refusal else "")


def _from_gemini(found: Any) -> tuple[str | None, str]:
    try:
        candidate = found["candidates"][0]
        parts = candidate["content"]["parts"]
        text = "".join(part["text"] for part in parts if "text" in part and not part.get("thought"))
    except (KeyError, IndexError, TypeError, AttributeError):
        blocked = found.get("promptFeedback") if isinstance(found, dict) else None
        return None, "it blocked the question" if blocked else ""
    reason = candidate.get("finishReason")
    return text, reason if reason in ("STOP", "MAX_TOKENS", "SAFETY") else "OTHER"


def _text(content: dict[str, Any]) -> str:
    return "".join(part.get("text", "") for part in content["parts"])


def _read(body: bytes) -> Any:
    try:
        return orjson.loads(body)
    except ValueError:
        return None


def _words(judge: JudgeEndpoint, found: Any) -> str:
    """What the endpoint says of its error, without the key."""
    error = found.get("error") if isinstance(found, dict) else None
    words = error.get("message") if isinstance(error, dict) else error
    if not isinstance(words, str) or not words.strip():
        return ""
    hidden = words.replace(judge.key, "…") if judge.key else words
    return f": {' '.join(hidden.split())[:200]}"
