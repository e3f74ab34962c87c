"""Judge models of other services that an administrator configured: each request becomes one HTTP call.

Two APIs are supported: OpenAI's chat completions and Gemini's generateContent. Only text and finish reason of a reply
are used. API keys never appear in a message, a spec or a log.
"""

from __future__ import annotations

import http.client
import time
from collections.abc import Callable, Mapping
from typing import Any

import orjson

from sarto.control.context import JudgeEndpoint
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
from sarto.system import outbound_http

MOST_ANSWER_BYTES = 1 << 20
MOST_PAUSE_SECONDS = 60.0
"""Longest wait for a judge that sends a time to retry."""
KINDS: dict[int, type[SartoError]] = {
    400: InvalidArgument, 401: Unauthenticated, 403: PermissionDenied, 404: NotFound, 408: Unavailable,
    425: Unavailable, 429: ResourceExhausted,
}  # fmt: skip
FINISH_REASONS = {"stop": "STOP", "length": "MAX_TOKENS", "content_filter": "SAFETY"}
LEFT_OUT = frozenset({"propertyOrdering", "maxLength"})
"""Keys of a schema that OpenAI's strict form lacks or refuses."""


def ask_one(
    judges: Mapping[str, JudgeEndpoint],
    name: str,
    request: dict[str, Any],
    pause: Callable[[float], object] = time.sleep,
) -> dict[str, Any]:
    """`ask` by name. Raises FailedPrecondition for a judge that was removed."""
    if name not in judges:
        raise FailedPrecondition(f"The autorater {name} is not configured on this server any more.")
    return ask(judges[name], request, pause)


def ask(
    endpoint: JudgeEndpoint, request: dict[str, Any], pause: Callable[[float], object] = time.sleep
) -> dict[str, Any]:
    """Send a GenerateContentRequest as JSON; returns a GenerateContentResponse. Raises SartoError: Unavailable and
    ResourceExhausted for temporary failures, after the pause that the endpoint requests."""
    judge = endpoint.judge
    body, headers = (_to_openai if judge.kind == "openai" else _to_gemini)(endpoint, request)
    headers |= {"content-type": "application/json", "accept": "application/json", "user-agent": "sarto"}
    with endpoint.room:
        try:
            answer = outbound_http.post(
                endpoint.target(), orjson.dumps(body), headers, judge.timeout_seconds, MOST_ANSWER_BYTES
            )
        except (OSError, http.client.HTTPException) as error:
            raise Unavailable(f"{judge.name} could not be reached: {type(error).__name__}") from None
        if answer.status == 429 and answer.retry_after.isdigit():
            pause(min(float(answer.retry_after), MOST_PAUSE_SECONDS))
    reply = _read(answer.body)
    if answer.status != 200:
        kind = KINDS.get(answer.status, Unavailable if answer.status >= 500 else FailedPrecondition)
        raise kind(f"{judge.name} answered HTTP {answer.status}{_words(endpoint, reply)}")
    text, reason = (_from_openai if judge.kind == "openai" else _from_gemini)(reply)
    if text is None:
        raise Internal(f"{judge.name} returned no text ({reason or 'not in the form of ' + judge.kind}).")
    content = {"role": "model", "parts": [{"text": text}]}
    return {"candidates": [{"content": content, "finishReason": reason}]}


def _to_openai(endpoint: JudgeEndpoint, request: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    config = request.get("generationConfig", {})
    messages = []
    if "systemInstruction" in request:
        messages.append({"role": "system", "content": _text(request["systemInstruction"])})
    for content in request["contents"]:
        role = "assistant" if content.get("role") == "model" else "user"
        messages.append({"role": role, "content": _text(content)})
    parameters = {
        "temperature": config.get("temperature"),
        "top_p": config.get("topP"),
        "seed": config.get("seed"),
        "stop": config.get("stopSequences"),
        endpoint.judge.token_limit: config.get("maxOutputTokens"),
    }
    body: dict[str, Any] = {"model": endpoint.judge.model, "messages": messages}
    body |= {name: value for name, value in parameters.items() if value is not None}
    if config.get("responseMimeType") == "application/json":
        schema = {"name": "verdict", "strict": True, "schema": _json_schema(config["responseSchema"])}
        is_held = endpoint.judge.replies == "schema"
        body["response_format"] = {"type": "json_schema", "json_schema": schema} if is_held else {"type": "json_object"}
    return body, {"authorization": f"Bearer {endpoint.key}"} if endpoint.key else {}


def _to_gemini(endpoint: JudgeEndpoint, request: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    config = dict(request.get("generationConfig", {}))
    if endpoint.judge.replies == "json":
        config.pop("responseSchema", None)
    body = {**request, "generationConfig": config}
    return body, {"x-goog-api-key": endpoint.key} if endpoint.key else {}


def _json_schema(schema: dict[str, Any]) -> dict[str, Any]:
    """Our schema of a verdict as JSON Schema."""
    converted = {name: value for name, value in schema.items() if name not in LEFT_OUT}
    converted["type"] = schema["type"].lower()
    if "properties" in converted:
        converted["properties"] = {name: _json_schema(inner) for name, inner in schema["properties"].items()}
        converted["additionalProperties"] = False
    return converted


def _from_openai(reply: Any) -> tuple[str | None, str]:
    """Text and finish reason; no text if the reply has none."""
    try:
        choice = reply["choices"][0]
        text, refusal = choice["message"].get("content"), choice["message"].get("refusal")
        reason = FINISH_REASONS.get(choice.get("finish_reason"), "OTHER")
    except (KeyError, IndexError, TypeError, AttributeError):
        return None, ""
    return (text, reason) if isinstance(text, str) else (None, "it refused" if refusal else "")


def _from_gemini(reply: Any) -> tuple[str | None, str]:
    try:
        candidate = reply["candidates"][0]
        parts = candidate["content"]["parts"]
        text = "".join(part["text"] for part in parts if "text" in part and not part.get("thought"))
    except (KeyError, IndexError, TypeError, AttributeError):
        blocked = reply.get("promptFeedback") if isinstance(reply, dict) else None
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


def _words(endpoint: JudgeEndpoint, reply: Any) -> str:
    """The endpoint's error message, without the key."""
    error = reply.get("error") if isinstance(reply, dict) else None
    words = error.get("message") if isinstance(error, dict) else error
    if not isinstance(words, str) or not words.strip():
        return ""
    hidden = words.replace(endpoint.key, "…") if endpoint.key else words
    return f": {' '.join(hidden.split())[:200]}"
