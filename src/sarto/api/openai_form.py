"""OpenAI's chat messages to Gemini's words and back. Pure: knows no HTTP and no models. Used by `openai.py`.

What cannot be honoured is refused under OpenAI's own parameter name; what has no effect on the answer is let through.
"""

from __future__ import annotations

import json
import secrets
from typing import Any

from sarto.errors import FieldViolation, InvalidArgument
from sarto.schema.generation import Candidate, GenerateContentRequest, GenerateContentResponse, LogprobsCandidate

WITHOUT_EFFECT = frozenset(
    "model user metadata store parallel_tool_calls service_tier safety_identifier prompt_cache_key "
    "prompt_cache_retention reasoning_effort verbosity stream stream_options top_logprobs tools tool_choice".split()
)
"""Parameters that change nothing here, or that are read by name further down."""
PLAIN = {
    "temperature": "temperature",
    "top_p": "topP",
    "n": "candidateCount",
    "max_tokens": "maxOutputTokens",
    "max_completion_tokens": "maxOutputTokens",
    "seed": "seed",
    "presence_penalty": "presencePenalty",
    "frequency_penalty": "frequencyPenalty",
    "logprobs": "responseLogprobs",
}
OTHERS = frozenset(["messages", "stop", "response_format"])
FINISH = {"STOP": "stop", "MAX_TOKENS": "length"}


def read_chat(body: dict[str, Any]) -> GenerateContentRequest:
    """A chat completion request as generateContent takes it. Raises InvalidArgument naming the parameter."""
    given = {name: value for name, value in body.items() if value is not None}
    neutral = [name for name in ("logit_bias",) if name in given and not given[name]]
    unknown = set(given) - WITHOUT_EFFECT - set(PLAIN) - OTHERS - set(neutral)
    if unknown:
        raise InvalidArgument.of(FieldViolation(name, "This parameter is not supported.") for name in sorted(unknown))
    system, contents = _read_messages(given.get("messages"))
    config: dict[str, Any] = {PLAIN[name]: value for name, value in given.items() if name in PLAIN}
    stop = given.get("stop", [])
    config["stopSequences"] = [stop] if isinstance(stop, str) else stop
    if given.get("logprobs") and "top_logprobs" in given:
        config["logprobs"] = given["top_logprobs"]
    config |= _read_format(given.get("response_format", {"type": "text"}))
    row: dict[str, Any] = {"contents": contents, "generationConfig": config}
    if system:
        row["systemInstruction"] = {"parts": [{"text": system}]}
    row |= _read_tools(given.get("tools", []), given.get("tool_choice", "auto"))
    return GenerateContentRequest.read(row)


def _read_messages(messages: Any) -> tuple[str, list[dict[str, Any]]]:
    """System text and contents. Answers of tools that follow each other are one content."""
    if not isinstance(messages, list) or not messages or not all(isinstance(item, dict) for item in messages):
        raise InvalidArgument.field("messages", "A list of messages is needed.")
    system: list[str] = []
    contents: list[dict[str, Any]] = []
    names: dict[str, str] = {}
    for index, message in enumerate(messages):
        at, role = f"messages[{index}]", message.get("role")
        if role in ("system", "developer"):
            if contents:
                raise InvalidArgument.field(at, f"A {role} message must stand before all others.")
            system.append(_text(message, at))
        elif role == "user":
            contents.append({"role": "user", "parts": [{"text": _text(message, at)}]})
        elif role == "assistant":
            contents.append({"role": "model", "parts": _assistant_parts(message, at, names)})
        elif role == "tool":
            part = _tool_part(message, at, names)
            if contents and "functionResponse" in contents[-1]["parts"][0]:
                contents[-1]["parts"].append(part)
            else:
                contents.append({"role": "user", "parts": [part]})
        else:
            raise InvalidArgument.field(
                f"{at}.role", f"{role!r} is not one of system, developer, user, assistant, tool."
            )
    return "\n\n".join(system), contents


def _text(message: dict[str, Any], at: str) -> str:
    content = message.get("content")
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise InvalidArgument.field(f"{at}.content", "Text, or a list of text parts, is needed.")
    for index, part in enumerate(content):
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            kind = part.get("type") if isinstance(part, dict) else type(part).__name__
            raise InvalidArgument.field(
                f"{at}.content[{index}]", f"{kind} is not supported: this model reads text only."
            )
    return "".join(part["text"] for part in content)


def _assistant_parts(message: dict[str, Any], at: str, names: dict[str, str]) -> list[dict[str, Any]]:
    parts: list[dict[str, Any]] = [{"text": _text(message, at)}] if message.get("content") else []
    for index, call in enumerate(message.get("tool_calls") or []):
        where = f"{at}.tool_calls[{index}]"
        try:
            name, arguments = call["function"]["name"], json.loads(call["function"]["arguments"] or "{}")
        except (KeyError, TypeError, ValueError):
            raise InvalidArgument.field(where, "A function with a name and JSON arguments is needed.") from None
        names[str(call.get("id", ""))] = name
        parts.append({"functionCall": {"name": name, "args": arguments}})
    return parts


def _tool_part(message: dict[str, Any], at: str, names: dict[str, str]) -> dict[str, Any]:
    name = names.get(str(message.get("tool_call_id", "")))
    if name is None:
        raise InvalidArgument.field(f"{at}.tool_call_id", "No earlier message has a call with this id.")
    text = _text(message, at)
    try:
        value = json.loads(text)
    except ValueError:
        value = text
    return {"functionResponse": {"name": name, "response": value if isinstance(value, dict) else {"result": value}}}


def _read_format(wanted: Any) -> dict[str, Any]:
    kind = wanted.get("type") if isinstance(wanted, dict) else None
    if kind == "text":
        return {}
    if kind == "json_object":
        return {"responseMimeType": "application/json"}
    if kind == "json_schema" and isinstance(wanted.get("json_schema"), dict):
        schema = wanted["json_schema"].get("schema", {"type": "object"})
        return {"responseMimeType": "application/json", "responseJsonSchema": schema}
    raise InvalidArgument.field("response_format", "The type must be text, json_object or json_schema with its schema.")


def _read_tools(tools: Any, choice: Any) -> dict[str, Any]:
    declared = []
    for index, tool in enumerate(tools):
        function = tool.get("function") if isinstance(tool, dict) else None
        if not isinstance(function, dict):
            raise InvalidArgument.field(f"tools[{index}]", "Only tools of type function are supported.")
        renamed = {"parameters": "parametersJsonSchema"}
        declared.append({renamed.get(key, key): value for key, value in function.items() if key != "strict"})
    calling: dict[str, Any] = {}
    if isinstance(choice, dict) and isinstance(choice.get("function"), dict):
        calling = {"mode": "ANY", "allowedFunctionNames": [choice["function"].get("name", "")]}
    elif choice in ("none", "required"):
        calling = {"mode": {"none": "NONE", "required": "ANY"}[choice]}
    elif choice != "auto":
        raise InvalidArgument.field("tool_choice", "It must be none, auto, required or a named function.")
    row: dict[str, Any] = {"toolConfig": {"functionCallingConfig": calling}} if calling else {}
    return row | ({"tools": [{"functionDeclarations": declared}]} if declared else {})


class Answer:
    """One chat completion: its id, time and model name, which every piece of it repeats."""

    def __init__(self, model: str, created: int) -> None:
        self._head = {"id": f"chatcmpl-{secrets.token_hex(12)}", "created": created, "model": model}
        self._calls: dict[int, int] = {}

    def whole(self, response: GenerateContentResponse) -> dict[str, Any]:
        choices = []
        for candidate in response.candidates:
            delta = self._delta(candidate)
            message = {"role": "assistant", "refusal": None, **delta, "content": delta.get("content")}
            for call in message.get("tool_calls", ()):
                call.pop("index")
            choices.append(self._choice(candidate) | {"message": message})
        return self._head | {"object": "chat.completion", "choices": choices, "usage": usage(response)}

    def opening(self, index: int) -> dict[str, Any]:
        """The first piece of a choice, which says who speaks."""
        choice = {
            "index": index,
            "delta": {"role": "assistant", "content": ""},
            "finish_reason": None,
            "logprobs": None,
        }
        return self._head | {"object": "chat.completion.chunk", "choices": [choice]}

    def piece(self, candidate: Candidate) -> dict[str, Any]:
        delta = self._delta(candidate)
        return self._head | {
            "object": "chat.completion.chunk",
            "choices": [self._choice(candidate) | {"delta": delta}],
        }

    def closing(self, response: GenerateContentResponse) -> dict[str, Any]:
        """The piece that holds nothing but the usage."""
        return self._head | {"object": "chat.completion.chunk", "choices": [], "usage": usage(response)}

    def _delta(self, candidate: Candidate) -> dict[str, Any]:
        parts = candidate.content.parts if candidate.content is not None else []
        text = "".join(part.text for part in parts if part.text is not None and not part.thought)
        delta: dict[str, Any] = {"content": text} if text else {}
        index = candidate.index or 0
        for part in parts:
            if part.function_call is not None:
                number = self._calls[index] = self._calls.get(index, -1) + 1
                function = {"name": part.function_call.name, "arguments": json.dumps(part.function_call.args or {})}
                call = {
                    "index": number,
                    "id": f"call_{secrets.token_hex(12)}",
                    "type": "function",
                    "function": function,
                }
                delta.setdefault("tool_calls", []).append(call)
        return delta

    def _choice(self, candidate: Candidate) -> dict[str, Any]:
        reason = None
        if candidate.finish_reason is not None:
            reason = FINISH.get(str(candidate.finish_reason), "stop")
            if reason == "stop" and (candidate.index or 0) in self._calls:
                reason = "tool_calls"
        return {"index": candidate.index or 0, "finish_reason": reason, "logprobs": _logprobs(candidate)}


def _logprobs(candidate: Candidate) -> dict[str, Any] | None:
    result = candidate.logprobs_result
    if result is None:
        return None
    rows = []
    for place, chosen in enumerate(result.chosen_candidates):
        top = result.top_candidates[place].candidates if place < len(result.top_candidates) else []
        rows.append(_logprob(chosen) | {"top_logprobs": [_logprob(other) for other in top]})
    return {"content": rows, "refusal": None}


def _logprob(row: LogprobsCandidate) -> dict[str, Any]:
    return {"token": row.token, "logprob": row.log_probability, "bytes": list(row.token.encode())}


def usage(response: GenerateContentResponse) -> dict[str, Any]:
    counted = response.usage_metadata
    assert counted is not None, "every complete answer counts its tokens"
    return {
        "prompt_tokens": counted.prompt_token_count or 0,
        "completion_tokens": counted.candidates_token_count or 0,
        "total_tokens": counted.total_token_count or 0,
        "prompt_tokens_details": {"cached_tokens": counted.cached_content_token_count or 0},
    }
