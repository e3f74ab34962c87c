"""`messages` rows into turns: the style of Gemini 1.0 (system, user, model) and OpenAI's (assistant, tool, tool_calls),
and the older chat rows with `context` and authors. `conversations/examples.py` chooses this format."""

from __future__ import annotations

from typing import Any

from sarto.conversations.conversation import (
    FunctionCall,
    FunctionResponse,
    Role,
    RowFault,
    Turn,
    checked_json,
    describe,
    join_turns,
)
from sarto.conversations.gemini_rows import declare, refuse_unknown
from sarto.conversations.json_text import RepeatedKey, read_json_text

ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "model": "model",
    "assistant": "model",
    "tool": "tool",
}
FILE_PARTS = {"image_url": "an image", "input_audio": "audio", "file": "a document", "video_url": "a video"}
MESSAGE_KEYS = ("role", "content", "tool_calls", "tool_call_id", "name", "reasoning_content", "weight")


def read_messages_row(row: dict[str, Any]) -> tuple[list[Turn], list[str], tuple[dict[str, Any], ...]]:
    """Turns, the path of each, and tools. Raises RowFault."""
    for key in row:
        if key not in ("messages", "tools", "context", "parallel_tool_calls") and row[key] is not None:
            raise RowFault(key, "an unknown field", "only messages, tools and context", f'remove "{key}"')
    turns, paths = read_messages(row.get("messages"))
    if row.get("context") is not None:
        turns.insert(0, Turn("system", _plain_text(row["context"], "context")))
        paths.insert(0, "context")
    return *join_messages(turns, paths), read_functions(row.get("tools"))


def read_messages(messages: object) -> tuple[list[Turn], list[str]]:
    """One turn for each message, and the path of each. Raises RowFault."""
    if not isinstance(messages, list) or not messages:
        raise RowFault("messages", describe(messages), "a list of messages", "write the turns of the conversation")
    turns: list[Turn] = []
    paths: list[str] = []
    calls: dict[str, FunctionCall] = {}  # those of the last turn of the model, by id
    for index, message in enumerate(messages):
        path = f"messages[{index}]"
        if not isinstance(message, dict):
            raise RowFault(path, describe(message), "an object with role and content", "write it as an object")
        turn = _read_authored(message, path) if "author" in message else _read_message(message, path, calls)
        if turn.role != "tool" and not (turn.role == "model" and turns and turns[-1].role == "model"):
            calls.clear()
        calls |= {call.id or f"{path}, call {number}": call for number, call in enumerate(turn.calls)}
        turns.append(turn)
        paths.append(path)
    return turns, paths


def join_messages(turns: list[Turn], paths: list[str]) -> tuple[list[Turn], list[str]]:
    """Consecutive messages of one role as one turn, with an empty line between their texts. A system message without
    text is ignored. Raises RowFault."""
    pairs = [
        (turn, path) for turn, path in zip(turns, paths, strict=True) if turn.role != "system" or turn.text.strip()
    ]
    return join_turns([turn for turn, _ in pairs], [path for _, path in pairs], "\n\n")


def _read_authored(message: dict[str, Any], path: str) -> Turn:
    """A message of the older chat format, with an author instead of a role."""
    refuse_unknown(message, ("author", "content"), path)
    author = message["author"]
    if author not in ("user", "bot", "assistant", "model"):
        raise RowFault(f"{path}.author", describe(author), '"user" or "bot"', "name the role")
    return Turn("user" if author == "user" else "model", _plain_text(message.get("content"), f"{path}.content"))


def _read_message(message: dict[str, Any], path: str, calls_before: dict[str, FunctionCall]) -> Turn:
    for old in ("function_call", "audio", "refusal"):
        if message.get(old) is not None:
            fix = "write tool_calls" if old == "function_call" else f'remove "{old}" or the row'
            raise RowFault(f"{path}.{old}", describe(message[old]), f"no {old}", fix)
    refuse_unknown({key: value for key, value in message.items() if value != []}, MESSAGE_KEYS, path)
    role_name = message.get("role")
    role = ROLES.get(role_name.lower()) if isinstance(role_name, str) else None
    if role is None:
        raise RowFault(f"{path}.role", describe(role_name), '"system", "user", "assistant" or "tool"', "name the role")
    if role == "tool":
        _is_learned(message, path, role)
        return Turn("tool", responses=(_read_tool_message(message, path, calls_before),))
    for key in ("name", "tool_call_id"):
        if message.get(key) is not None:
            raise RowFault(
                f"{path}.{key}", describe(message[key]), f"no {key} in a {role_name} message", f'remove "{key}"'
            )
    calls = _read_calls(message.get("tool_calls"), f"{path}.tool_calls")
    thought = message.get("reasoning_content")
    if (calls or thought) and role != "model":
        what = "tool_calls" if calls else "reasoning_content"
        raise RowFault(f"{path}.{what}", f"{what} of the {role}", "it in assistant messages only", "correct the role")
    if thought is not None and not isinstance(thought, str):
        raise RowFault(f"{path}.reasoning_content", describe(thought), "a string", "write the reasoning as text")
    content = message.get("content")
    text = "" if content is None and role == "model" else _plain_text(content, f"{path}.content")
    return Turn(role, text, calls, (), thought or "", _is_learned(message, path, role))


def _is_learned(message: dict[str, Any], path: str, role: Role) -> bool:
    """OpenAI's `weight` of a reply: 0 makes it context only."""
    weight = message.get("weight")
    if weight is None:
        return True
    if role != "model":
        raise RowFault(f"{path}.weight", describe(weight), "weight in assistant messages only", "remove it")
    if isinstance(weight, bool) or weight not in (0, 1):
        raise RowFault(f"{path}.weight", describe(weight), "0 or 1", "write 0 for a reply that is not to be learned")
    return bool(weight)


def _plain_text(content: object, path: str) -> str:
    """A string, or a list of text parts."""
    return content if isinstance(content, str) else "".join(_text_parts(content, path))


def _text_parts(content: object, path: str) -> list[str]:
    if not isinstance(content, list):
        raise RowFault(path, describe(content), "a string or a list of text parts", "write the text as a string")
    texts = []
    for index, part in enumerate(content):
        where = f"{path}[{index}]"
        kind = part.get("type") if isinstance(part, dict) else None
        if isinstance(kind, str) and kind in FILE_PARTS:
            raise RowFault(where, FILE_PARTS[kind], "text", "this model reads text only")
        if not isinstance(part, dict) or kind not in ("text", None) or not isinstance(part.get("text"), str):
            raise RowFault(where, describe(part), 'a part such as {"type": "text", "text": "…"}', "write a text part")
        refuse_unknown(part, ("type", "text"), where)
        texts.append(part["text"])
    return texts


def _read_calls(calls: object, path: str) -> tuple[FunctionCall, ...]:
    if calls is None or calls == []:
        return ()
    if not isinstance(calls, list):
        raise RowFault(path, describe(calls), "a list of calls", "write a list")
    parsed = []
    for index, call in enumerate(calls):
        where = f"{path}[{index}]"
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict) or call.get("type") not in ("function", None):
            raise RowFault(where, describe(call), 'an object with type "function" and function', "write the call so")
        refuse_unknown(call, ("type", "function", "id", "index"), where)
        refuse_unknown(function, ("name", "arguments"), f"{where}.function")
        name, identifier = function.get("name"), call.get("id")
        if not isinstance(name, str) or not name:
            raise RowFault(f"{where}.function.name", describe(name), "the function's name", "name the function")
        if identifier is not None and not isinstance(identifier, str):
            raise RowFault(f"{where}.id", describe(identifier), "a string", "write the id as a string")
        parsed.append(
            FunctionCall(name, _arguments(function.get("arguments"), f"{where}.function.arguments"), identifier or "")
        )
    return tuple(parsed)


def _arguments(raw: object, path: str) -> dict[str, Any]:
    """Arguments of a call: an object or, in OpenAI's form, a string with one."""
    value = raw
    if isinstance(raw, str):
        try:
            value = read_json_text(raw.encode()) if raw.strip() else {}
        except RepeatedKey as error:
            raise RowFault(path, f"that {error}", "each key once", "remove one of the two") from None
        except ValueError:
            raise RowFault(path, describe(raw), "a JSON object", "write valid JSON") from None
    if value is None:
        value = {}
    if not isinstance(value, dict):
        raise RowFault(path, describe(value), "a JSON object", "write the arguments as an object")
    arguments: dict[str, Any] = checked_json(value, path)
    return arguments


def _read_tool_message(message: dict[str, Any], path: str, calls: dict[str, FunctionCall]) -> FunctionResponse:
    """The response to a call; its name comes from the message or from the call."""
    identifier, name, content = message.get("tool_call_id"), message.get("name"), message.get("content")
    for key in ("tool_calls", "reasoning_content"):
        if message.get(key):
            raise RowFault(f"{path}.{key}", describe(message[key]), f"no {key} in a tool message", f'remove "{key}"')
    if name is not None and not isinstance(name, str):
        raise RowFault(f"{path}.name", describe(name), "the function's name", "write the name as a string")
    matching = calls.get(identifier) if isinstance(identifier, str) and identifier else None
    if matching is None and not name and len(calls) == 1 and not identifier:
        matching = next(iter(calls.values()))
    if matching is None and (identifier or not name):
        raise RowFault(f"{path}.tool_call_id", describe(identifier), "the id of a call before it", "answer a call")
    text = content if isinstance(content, str) else "".join(_text_parts(content, f"{path}.content"))
    answered = name or (matching.name if matching is not None else "")
    return FunctionResponse(answered, text, identifier if isinstance(identifier, str) else "")


def read_functions(tools: object) -> tuple[dict[str, Any], ...]:
    if tools is None:
        return ()
    if not isinstance(tools, list):
        raise RowFault("tools", describe(tools), "a list of tools", "write a list")
    functions: dict[str, dict[str, Any]] = {}
    for index, tool in enumerate(tools):
        path = f"tools[{index}]"
        if not isinstance(tool, dict) or tool.get("type") != "function":
            raise RowFault(path, describe(tool), 'an object with type "function" and function', "write the tool so")
        refuse_unknown(tool, ("type", "function"), path)
        declare(functions, tool.get("function"), f"{path}.function")
    return tuple(functions.values())
