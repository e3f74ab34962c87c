"""Plain text form of tools, calls and responses for models whose chat template has no form for them, and the parser of
calls in a reply's text."""

from __future__ import annotations

import json
import re
from typing import Any

from sarto.conversations.conversation import FunctionCall, FunctionResponse, RowFault, checked_json
from sarto.conversations.json_text import read_json_text

_CALL = re.compile(r"<tool_call>\s*(\{.*?\})\s*</tool_call>", re.DOTALL)
CALL_KEYS = ("name", "arguments", "parameters", "type")
"""First keys of a call that is a bare JSON object."""
_INTRODUCTION = (
    "You can call these functions. To call one, answer with a JSON object of its name and arguments between "
    "<tool_call> and </tool_call>, one pair for each call.\n<tools>\n{tools}\n</tools>"
)


def tools_text(tools: tuple[dict[str, Any], ...]) -> str:
    """Function declarations for the system turn, one JSON object a line."""
    return _INTRODUCTION.replace("{tools}", "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools))


def call_text(call: FunctionCall) -> str:
    body = json.dumps({"name": call.name, "arguments": call.arguments}, ensure_ascii=False)
    return f"<tool_call>\n{body}\n</tool_call>"


def response_text(response: FunctionResponse) -> str:
    body = json.dumps({"name": response.name, "content": response.content}, ensure_ascii=False)
    return f"<tool_response>\n{body}\n</tool_response>"


def split_calls(text: str, names: frozenset[str]) -> tuple[str, list[FunctionCall]]:
    """A reply as text and calls. Parses `<tool_call>` blocks, and a reply that is only one JSON object with a name
    among `names` and arguments or parameters. Text that does not parse stays text."""
    calls = [call for call in map(_read_call, _CALL.findall(text)) if call is not None and call.name in names]
    if calls:
        return _CALL.sub("", text).strip(), calls
    bare = _read_call(text.strip()) if may_be_bare_call(text, names) else None
    return ("", [bare]) if bare is not None and bare.name in names else (text, [])


def may_be_bare_call(text: str, names: frozenset[str]) -> bool:
    """Whether a reply with this beginning may be one JSON object that calls one of these functions, by its first key
    and, for the key of the name, the name. Other text can be streamed at once."""
    is_possible, rest = _behind(text, "{", '"')
    key, closed, rest = rest.partition('"')
    if not is_possible or not closed:
        return is_possible and any(known.startswith(key) for known in CALL_KEYS)
    if key != "name":
        return key in CALL_KEYS
    is_possible, rest = _behind(rest, ":", '"')
    name, closed, _ = rest.partition('"')
    if not is_possible or "\\" in name:  # escaped: decided only by parsing all of it
        return is_possible
    return name in names if closed else any(known.startswith(name) for known in names)


def _behind(text: str, *marks: str) -> tuple[bool, str]:
    """Whether the text begins with these marks, as far as it goes, and the text after them."""
    for mark in marks:
        text = text.lstrip()
        if text and text[0] != mark:
            return False, ""
        text = text[1:]
    return True, text


def _read_call(body: str) -> FunctionCall | None:
    """The call, or None if reading would change it: such a reply stays text."""
    try:
        value = checked_json(read_json_text(body.encode("utf-8", "replace")), "")
    except (ValueError, RowFault):
        return None
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        return None
    arguments = value.get("arguments", value.get("parameters"))
    return FunctionCall(value["name"], arguments) if isinstance(arguments, dict) else None
