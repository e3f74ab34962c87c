"""Conversations that every family is tested on, as dataset rows and as the messages a template's makers expect."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FAMILIES = Path(__file__).parent / "families"
FAMILY_NAMES = tuple(sorted(folder.name for folder in FAMILIES.iterdir()))
WITH_TOOLS = ("llama3", "llama31", "qwen2", "qwen3")
SMALL_BASE = Path.home() / ".cache" / "sarto" / "models" / "smollm2-135m-instruct"


@dataclass(frozen=True)
class Case:
    """A row, the same conversation as messages, and the text of each reply as it is learned (without its end token)."""

    name: str
    row: dict[str, Any]
    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] = field(default_factory=list)
    families: tuple[str, ...] = FAMILY_NAMES

    @property
    def line(self) -> bytes:
        return json.dumps(self.row, ensure_ascii=False).encode()


def _plain(name: str, *texts: str, system: str = "") -> Case:
    contents, messages = [], []
    for index, words in enumerate(texts):
        contents.append({"role": "model" if index % 2 else "user", "parts": [{"text": words}]})
        messages.append({"role": "assistant" if index % 2 else "user", "content": words})
    row: dict[str, Any] = {"contents": contents}
    if system:
        row["systemInstruction"] = {"parts": [{"text": system}]}
        messages.insert(0, {"role": "system", "content": system})
    return Case(name, row, messages)


_DECLARATION = {
    "name": "get_weather",
    "description": "The weather of a city",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
_CALL = {"name": "get_weather", "arguments": {"city": "Zürich", "days": [1, 2]}}
_TOOL_CASE = Case(
    "tools",
    {
        "systemInstruction": {"parts": [{"text": "Answer shortly."}]},
        "tools": [{"functionDeclarations": [_DECLARATION]}],
        "contents": [
            {"role": "user", "parts": [{"text": "What is the weather in Zürich?"}]},
            {"role": "model", "parts": [{"functionCall": {"name": "get_weather", "args": _CALL["arguments"]}}]},
            {"role": "user", "parts": [{"functionResponse": {"name": "get_weather", "response": {"sky": "blue"}}}]},
            {"role": "model", "parts": [{"text": "Blue sky."}]},
        ],
    },
    [
        {"role": "system", "content": "Answer shortly."},
        {"role": "user", "content": "What is the weather in Zürich?"},
        {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": _CALL}]},
        {"role": "tool", "name": "get_weather", "content": '{"sky": "blue"}'},
        {"role": "assistant", "content": "Blue sky."},
    ],
    [{"type": "function", "function": _DECLARATION}],
    WITH_TOOLS,
)
_THOUGHT_CASE = Case(
    "thought",
    {
        "contents": [
            {"role": "user", "parts": [{"text": "12 + 30?"}]},
            {"role": "model", "parts": [{"text": "Add them.\nDone.", "thought": True}, {"text": "42"}]},
        ]
    },
    [
        {"role": "user", "content": "12 + 30?"},
        {"role": "assistant", "reasoning_content": "Add them.\nDone.", "content": "42"},
    ],
    families=("qwen3",),
)
CASES = (
    _plain("one exchange", "What is the weather in Paris?", "Sunny, 21 degrees."),
    _plain("system", "Good morning, how are you?", "I'm well.", system="Be kind, and brief."),
    _plain(
        "three exchanges", "Hi", "Hello!", "And in Spanish?", "¡Hola!", "Thanks 👍🏽", "You're welcome.", system="S."
    ),
    _plain("white space", "  a\n\n  b \t", "x\n  y\n\nz", "1234567 890", "def f():\n    return 1\n"),
    _plain("scripts", "漢字かな交じり文 и кириллица", "Ünïcödé naïve café e\u0301 😀"),
    _plain("looks like keys", '{"role": "user"}', '{"a": ["b", 1.5, null]}'),
    _TOOL_CASE,
    _THOUGHT_CASE,
)
