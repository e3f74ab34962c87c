"""Converts OpenAI's chat messages to Gemini's form and back. Pure functions.

An unsupported parameter is refused under OpenAI's name. A parameter without effect on the response is ignored.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from typing import Any

from sarto.conversations.chat_rows import join_messages, read_functions, read_messages
from sarto.conversations.conversation import check_question
from sarto.conversations.examples import Example, RowFault
from sarto.conversations.generation_request import request_of
from sarto.errors import FieldViolation, InvalidArgument
from sarto.schema.generation import (
    Candidate,
    GenerateContentRequest,
    GenerateContentResponse,
    GenerationConfig,
    LogprobsCandidate,
    ToolConfig,
)

WITHOUT_EFFECT = frozenset(
    "model user metadata store parallel_tool_calls service_tier safety_identifier prompt_cache_key "
    "prompt_cache_retention reasoning_effort verbosity stream stream_options top_logprobs tools tool_choice".split()
)
"""Parameters that change nothing here, or that are read by name below."""
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
OTHERS = frozenset(["messages", "stop", "response_format", "modalities"])
PROMPT_KEYS = ("role", "content", "tool_calls", "tool_call_id", "reasoning_content", "function_call")
"""Keys of a message that reach the prompt or are refused. Other keys, such as `name` and `refusal`, are ignored."""
FINISH = {"STOP": "stop", "MAX_TOKENS": "length"}


def read_chat(body: dict[str, Any]) -> GenerateContentRequest:
    """A chat completion request in the form of generateContent. Raises InvalidArgument with the parameter."""
    fields = {name: value for name, value in body.items() if value is not None}
    neutral = [name for name in ("logit_bias",) if name in fields and not fields[name]]
    unknown = set(fields) - WITHOUT_EFFECT - set(PLAIN) - OTHERS - set(neutral)
    if unknown:
        raise InvalidArgument.of(FieldViolation(name, "This parameter is not supported.") for name in sorted(unknown))
    if "max_tokens" in fields and "max_completion_tokens" in fields:
        raise InvalidArgument.field("max_tokens", "Give max_tokens or max_completion_tokens, not both.")
    if fields.get("modalities", ["text"]) != ["text"]:
        raise InvalidArgument.field("modalities", 'Models generate text only: it must be ["text"].')
    chat = _conversation(fields.get("messages"), fields.get("tools"))
    config: dict[str, Any] = {PLAIN[name]: value for name, value in fields.items() if name in PLAIN}
    if "seed" in fields:
        config["seed"] = _folded(fields["seed"])
    stop = fields.get("stop", [])
    config["stopSequences"] = [stop] if isinstance(stop, str) else stop
    if fields.get("logprobs") and "top_logprobs" in fields:
        config["logprobs"] = fields["top_logprobs"]
    config |= _read_format(fields.get("response_format", {"type": "text"}))
    chat.generation_config = GenerationConfig.read(config, "generation_config")
    chat.tool_config = _tool_config(fields.get("tool_choice", "auto"))
    return chat


def _conversation(messages: Any, tools: Any) -> GenerateContentRequest:
    """The messages in the form of a dataset row, read by the same reader, without keys that do not reach the prompt.
    System messages are one instruction at any position."""
    if isinstance(messages, list):
        messages = [_without_notes(message) if isinstance(message, dict) else message for message in messages]
    try:
        pairs = list(zip(*read_messages(messages), strict=True))
        pairs.sort(key=lambda pair: pair[0].role != "system")
        turns, paths = join_messages([turn for turn, _ in pairs], [path for _, path in pairs])
        check_question(turns, paths)
        return request_of(Example(tuple(turns), read_functions(tools)))
    except RowFault as fault:
        raise InvalidArgument.field(fault.path or "messages", fault.finding) from None


def _without_notes(message: dict[str, Any]) -> dict[str, Any]:
    """A message without fields that clients add for themselves or for other services."""
    parts = {key: message[key] for key in PROMPT_KEYS if key in message}
    if message.get("role") == "tool" and "name" in message:
        parts["name"] = message["name"]
    content = message.get("content")
    if isinstance(content, list):
        parts["content"] = [_without_marks(part) for part in content]
    return parts


def _without_marks(part: Any) -> Any:
    is_text = isinstance(part, dict) and part.get("type") == "text"
    return {key: part[key] for key in ("type", "text") if key in part} if is_text else part


def _read_format(value: Any) -> dict[str, Any]:
    kind = value.get("type") if isinstance(value, dict) else None
    if kind == "text":
        return {}
    if kind == "json_object":
        return {"responseMimeType": "application/json"}
    if kind == "json_schema" and isinstance(value.get("json_schema"), dict):
        schema = value["json_schema"].get("schema", {"type": "object"})
        return {"responseMimeType": "application/json", "responseJsonSchema": schema}
    raise InvalidArgument.field("response_format", "The type must be text, json_object or json_schema with its schema.")


def _folded(seed: Any) -> Any:
    """A seed of 64 bits as one of 32; equal seeds stay equal. Other values are unchanged and refused later."""
    if type(seed) is not int or -(2**31) <= seed < 2**31 or not -(2**63) <= seed < 2**63:
        return seed
    return int.from_bytes(hashlib.blake2b(str(seed).encode(), digest_size=4).digest(), signed=True)


def _allowed(choice: dict[str, Any]) -> dict[str, Any]:
    """`allowed_tools`, if it requires one of them."""
    allowed = choice.get("allowed_tools")
    tools = allowed.get("tools") if isinstance(allowed, dict) else None
    if not isinstance(allowed, dict) or allowed.get("mode") != "required" or not isinstance(tools, list):
        words = 'allowed_tools needs mode "required" and its tools here; leave tools out of "tools" to forbid them.'
        raise InvalidArgument.field("tool_choice", words)
    functions = [tool.get("function") if isinstance(tool, dict) else None for tool in tools]
    names = [function.get("name") if isinstance(function, dict) else None for function in functions]
    return {"mode": "ANY", "allowedFunctionNames": names}


def _tool_config(choice: Any) -> ToolConfig | None:
    if isinstance(choice, dict) and isinstance(choice.get("function"), dict):
        calling = {"mode": "ANY", "allowedFunctionNames": [choice["function"].get("name", "")]}
    elif isinstance(choice, dict) and choice.get("type") == "allowed_tools":
        calling = _allowed(choice)
    elif choice in ("none", "required"):
        calling = {"mode": {"none": "NONE", "required": "ANY"}[choice]}
    elif choice == "auto":
        return None
    else:
        raise InvalidArgument.field("tool_choice", "It must be none, auto, required or a named function.")
    return ToolConfig.read({"functionCallingConfig": calling})


class ChatCompletion:
    """One chat completion: its id, time and model name, which every piece repeats."""

    def __init__(self, model: str, created: int) -> None:
        self._head = {"id": f"chatcmpl-{secrets.token_hex(12)}", "created": created, "model": model}
        self._calls: dict[int, int] = {}

    def whole(self, response: GenerateContentResponse) -> dict[str, Any]:
        choices = []
        for candidate in response.candidates:
            delta = self._delta(candidate)
            empty = None if "tool_calls" in delta else ""
            message = {"role": "assistant", "refusal": None, **delta, "content": delta.get("content", empty)}
            for call in message.get("tool_calls", ()):
                call.pop("index")
            choices.append(self._choice(candidate) | {"message": message})
        return self._head | {"object": "chat.completion", "choices": choices, "usage": usage(response)}

    def opening(self, index: int) -> dict[str, Any]:
        """The first piece of a choice, with its role."""
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
        """The last piece, with the usage only."""
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
    for position, chosen in enumerate(result.chosen_candidates):
        top = result.top_candidates[position].candidates if position < len(result.top_candidates) else []
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
