"""How tools, calls and responses are written in plain text for a model whose chat template has no words for them,
and how a reply's text is read back into calls. Used by the renderer and by serving."""

from __future__ import annotations

import json
import re
from typing import Any

from sarto.schema.turns import Call, Response

_CALL = re.compile(r"<tool_call>\s*(\{.*?\})\s*</tool_call>", re.DOTALL)
_INTRODUCTION = (
    "You can call these functions. To call one, answer with a JSON object of its name and arguments between "
    "<tool_call> and </tool_call>, one pair for each call.\n<tools>\n{tools}\n</tools>"
)


def tools_text(tools: tuple[dict[str, Any], ...]) -> str:
    """Function declarations for the system turn, one JSON object a line."""
    return _INTRODUCTION.replace("{tools}", "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools))


def call_text(call: Call) -> str:
    body = json.dumps({"name": call.name, "arguments": call.arguments}, ensure_ascii=False)
    return f"<tool_call>\n{body}\n</tool_call>"


def response_text(response: Response) -> str:
    body = json.dumps({"name": response.name, "content": response.content}, ensure_ascii=False)
    return f"<tool_response>\n{body}\n</tool_response>"


def split_calls(text: str, names: frozenset[str]) -> tuple[str, list[Call]]:
    """A reply as text and calls. Reads `<tool_call>` blocks, and a reply that is nothing but one JSON object with a
    name among `names` and arguments or parameters; what does not parse stays text."""
    calls = [call for call in map(_read_call, _CALL.findall(text)) if call is not None and call.name in names]
    if calls:
        return _CALL.sub("", text).strip(), calls
    bare = _read_call(text.strip()) if text.strip().startswith("{") else None
    return ("", [bare]) if bare is not None and bare.name in names else (text, [])


def _read_call(body: str) -> Call | None:
    try:
        value = json.loads(body)
    except ValueError:
        return None
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        return None
    arguments = value.get("arguments", value.get("parameters"))
    return Call(value["name"], arguments) if isinstance(arguments, dict) else None
