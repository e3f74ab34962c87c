"""`messages` rows into turns: the style of Gemini 1.0 (system, user, model) and OpenAI's (assistant, tool, tool_calls),
and the older chat rows with `context` and authors. `schema/examples.py` chooses this format."""

from __future__ import annotations

from typing import Any

import orjson

from sarto.schema.contents import declaration, refuse_unknown
from sarto.schema.turns import Call, Response, Role, RowFault, Turn, check_json, describe

ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "model": "model",
    "assistant": "model",
    "tool": "tool",
}
FILE_PARTS = {"image_url": "an image", "input_audio": "audio", "file": "a document", "video_url": "a video"}
MESSAGE_KEYS = ("role", "content", "tool_calls", "tool_call_id", "name", "reasoning_content")


def read_messages_row(row: dict[str, Any]) -> tuple[list[Turn], list[str], tuple[dict[str, Any], ...]]:
    """Turns, the path of each, and tools. Raises RowFault."""
    for key in row:
        if key not in ("messages", "tools", "context") and row[key] is not None:
            raise RowFault(key, "an unknown field", "only messages, tools and context", f'remove "{key}"')
    messages = row.get("messages")
    if not isinstance(messages, list) or not messages:
        raise RowFault("messages", describe(messages), "a list of messages", "write the turns of the conversation")
    turns: list[Turn] = []
    paths: list[str] = []
    if row.get("context") is not None:
        turns.append(Turn("system", _plain_text(row["context"], "context")))
        paths.append("context")
    for index, message in enumerate(messages):
        path = f"messages[{index}]"
        if not isinstance(message, dict):
            raise RowFault(path, describe(message), "an object with role and content", "write it as an object")
        turn = _read_authored(message, path) if "author" in message else _read_message(message, path, turns)
        if turn.role == "tool" and turns and turns[-1].role == "tool":
            turns[-1] = Turn("tool", responses=turns[-1].responses + turn.responses)
            continue
        turns.append(turn)
        paths.append(path)
    return turns, paths, _read_functions(row.get("tools"))


def _read_authored(message: dict[str, Any], path: str) -> Turn:
    """A message of the older chat format, with an author instead of a role."""
    refuse_unknown(message, ("author", "content"), path)
    author = message["author"]
    if author not in ("user", "bot", "assistant", "model"):
        raise RowFault(f"{path}.author", describe(author), '"user" or "bot"', "name who speaks")
    return Turn("user" if author == "user" else "model", _plain_text(message.get("content"), f"{path}.content"))


def _read_message(message: dict[str, Any], path: str, before: list[Turn]) -> Turn:
    for old in ("function_call", "weight", "audio", "refusal"):
        if message.get(old) is not None:
            fix = "write tool_calls" if old == "function_call" else f'remove "{old}" or the row'
            raise RowFault(f"{path}.{old}", describe(message[old]), f"no {old}", fix)
    refuse_unknown({key: value for key, value in message.items() if value != []}, MESSAGE_KEYS, path)
    given = message.get("role")
    role = ROLES.get(given) if isinstance(given, str) else None
    if role is None:
        raise RowFault(f"{path}.role", describe(given), '"system", "user", "assistant" or "tool"', "name who speaks")
    if role == "tool":
        return Turn("tool", responses=(_read_tool_message(message, path, before),))
    for key in ("name", "tool_call_id"):
        if message.get(key) is not None:
            raise RowFault(f"{path}.{key}", describe(message[key]), f"no {key} in a {given} message", f'remove "{key}"')
    calls = _read_calls(message.get("tool_calls"), f"{path}.tool_calls")
    thought = message.get("reasoning_content")
    if (calls or thought) and role != "model":
        what = "tool_calls" if calls else "reasoning_content"
        raise RowFault(f"{path}.{what}", f"{what} of the {role}", "it in assistant messages only", "correct the role")
    if thought is not None and not isinstance(thought, str):
        raise RowFault(f"{path}.reasoning_content", describe(thought), "a string", "write the reasoning as text")
    content = message.get("content")
    if content is None and calls:
        return Turn(role, "", calls, (), thought or "")
    text = content if calls and content == "" else _plain_text(content, f"{path}.content")
    return Turn(role, text, calls, (), thought or "")


def _plain_text(content: object, path: str) -> str:
    """A string, or a list of text parts, with something in it."""
    text = content if isinstance(content, str) else "".join(_text_parts(content, path))
    if not text.strip():
        raise RowFault(path, "no text", "text", "fill in the text or drop the row")
    return text


def _text_parts(content: object, path: str) -> list[str]:
    if not isinstance(content, list):
        raise RowFault(path, describe(content), "a string or a list of text parts", "write the text as a string")
    texts = []
    for index, part in enumerate(content):
        where = f"{path}[{index}]"
        kind = part.get("type") if isinstance(part, dict) else None
        if isinstance(kind, str) and kind in FILE_PARTS:
            raise RowFault(where, FILE_PARTS[kind], "text", "a text model takes no files")
        if not isinstance(part, dict) or kind not in ("text", None) or not isinstance(part.get("text"), str):
            raise RowFault(where, describe(part), 'a part such as {"type": "text", "text": "…"}', "write a text part")
        refuse_unknown(part, ("type", "text"), where)
        texts.append(part["text"])
    return texts


def _read_calls(calls: object, path: str) -> tuple[Call, ...]:
    if calls is None or calls == []:
        return ()
    if not isinstance(calls, list):
        raise RowFault(path, describe(calls), "a list of calls", "write a list")
    found = []
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
        found.append(Call(name, _arguments(function.get("arguments"), f"{where}.function.arguments"), identifier or ""))
    return tuple(found)


def _arguments(given: object, path: str) -> dict[str, Any]:
    """Arguments come as an object or, as OpenAI writes them, as a string that holds one."""
    value = given
    if isinstance(given, str):
        try:
            value = orjson.loads(given) if given.strip() else {}
        except ValueError:
            raise RowFault(path, describe(given), "a JSON object", "write valid JSON") from None
    if value is None:
        value = {}
    if not isinstance(value, dict):
        raise RowFault(path, describe(value), "a JSON object", "write the arguments as an object")
    check_json(value, path)
    return value


def _read_tool_message(message: dict[str, Any], path: str, before: list[Turn]) -> Response:
    """The answer to a call; its name comes from the message or from the call it answers."""
    identifier, name, content = message.get("tool_call_id"), message.get("name"), message.get("content")
    for key in ("tool_calls", "reasoning_content"):
        if message.get(key):
            raise RowFault(f"{path}.{key}", describe(message[key]), f"no {key} in a tool message", f'remove "{key}"')
    calls = next((turn.calls for turn in reversed(before) if turn.role != "tool"), ())
    matching = [call for call in calls if identifier and call.id == identifier]
    if not matching and not name and len(calls) == 1 and not identifier:
        matching = list(calls)
    if not matching and (identifier or not isinstance(name, str)):
        raise RowFault(f"{path}.tool_call_id", describe(identifier), "the id of a call before it", "answer a call")
    text = content if isinstance(content, str) else "".join(_text_parts(content, f"{path}.content"))
    return Response(str(name) if name else matching[0].name, text, identifier if isinstance(identifier, str) else "")


def _read_functions(tools: object) -> tuple[dict[str, Any], ...]:
    if tools is None:
        return ()
    if not isinstance(tools, list):
        raise RowFault("tools", describe(tools), "a list of tools", "write a list")
    found = []
    for index, tool in enumerate(tools):
        path = f"tools[{index}]"
        if not isinstance(tool, dict) or tool.get("type") != "function":
            raise RowFault(path, describe(tool), 'an object with type "function" and function', "write the tool so")
        refuse_unknown(tool, ("type", "function"), path)
        found.append(declaration(tool.get("function"), f"{path}.function"))
    return tuple(found)
