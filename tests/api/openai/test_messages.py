"""Parameters of a chat completion: kept, or refused by their own name."""

from __future__ import annotations

from typing import Any

import pytest

from sarto.api.openai.messages import read_chat
from sarto.catalog import Catalog
from sarto.errors import InvalidArgument

FUNCTIONS = [{"type": "function", "function": {"name": name, "parameters": {}}} for name in ("a", "b")]


def chat(**given: Any) -> Any:
    return read_chat({"messages": [{"role": "user", "content": "Hi"}], **given})


def seed(value: int) -> int:
    return int(chat(seed=value).generation_config.seed)


def test_a_seed_of_64_bits_is_kept_apart_from_others_and_the_same_every_time() -> None:
    assert [seed(value) for value in (0, 7, -1, 2**31 - 1, -(2**31))] == [0, 7, -1, 2**31 - 1, -(2**31)]
    wide = [2**31, 2**40 + 3, 2**63 - 1, -(2**63)]
    assert len({seed(value) for value in wide}) == 4 and [seed(v) for v in wide] == [seed(v) for v in wide]
    with pytest.raises(InvalidArgument, match="seed"):
        chat(seed=2**63)


def test_what_contradicts_itself_or_is_not_built_is_refused_by_name() -> None:
    for given, words in (
        ({"max_tokens": 5, "max_completion_tokens": 6}, "not both"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": []}}}, "allowed_tools"),
        ({"extra_body": {"google": {}}}, "extra_body"),
    ):
        with pytest.raises(InvalidArgument, match=words):
            chat(**given)


def test_text_alone_and_demanded_tools_are_understood() -> None:
    assert chat(modalities=["text"], max_tokens=5).generation_config.max_output_tokens == 5
    allowed = {"mode": "required", "tools": [{"type": "function", "function": {"name": "b"}}]}
    asked = chat(tools=FUNCTIONS, tool_choice={"type": "allowed_tools", "allowed_tools": allowed})
    assert asked.tool_config.function_calling_config.allowed_function_names == ["b"]


def test_a_base_model_goes_by_the_name_that_the_openai_list_has() -> None:
    assert Catalog.load().find("google/gemini-2.0-flash-001").name == "gemini-2.0-flash-001"
