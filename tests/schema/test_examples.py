"""Every format into one Example, and every fault with its place and remedy."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sarto.conversations.examples import (
    Example,
    FunctionCall,
    FunctionResponse,
    RowFault,
    Turn,
    parse_examples,
    parse_line,
    read_conversation,
)


def line_of(row: Any) -> bytes:
    return json.dumps(row, ensure_ascii=False).encode()


def text(role: str, words: str) -> dict[str, Any]:
    return {"role": role, "parts": [{"text": words}]}


def read(row: Any, **options: Any) -> Example:
    return parse_line(line_of(row), 7, **options)


def fault_of(raw: Any, **options: Any) -> RowFault:
    with pytest.raises(RowFault) as caught:
        parse_line(raw if isinstance(raw, bytes) else line_of(raw), 7, **options)
    fault = caught.value
    assert fault.line == 7
    assert fault.seen and fault.expected and fault.fix
    assert str(fault).startswith("line 7: ")
    return fault


EXCHANGE = [Turn("user", "Hi"), Turn("model", "Hello")]


@pytest.mark.parametrize(
    "row",
    [
        {"contents": [text("user", "Hi"), text("model", "Hello")]},
        {"contents": [text("user", "Hi"), text("assistant", "Hello")]},
        {"contents": [{"parts": [{"text": "Hi"}]}, {"parts": [{"text": "Hel"}, {"text": "lo"}]}]},
        {"contents": [text("user", "Hi"), text("model", "Hello")], "generationConfig": {"mediaResolution": "LOW"}},
        {"messages": [{"role": "user", "content": "Hi"}, {"role": "model", "content": "Hello"}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]},
                      {"role": "assistant", "content": "Hello", "tool_calls": None, "refusal": None}]},
        {"messages": [{"author": "user", "content": "Hi"}, {"author": "bot", "content": "Hello"}]},
        {"input_text": "Hi", "output_text": "Hello"},
        {"prompt": "Hi", "completion": "Hello"},
    ],
)  # fmt: skip
def test_every_format_gives_the_same_turns(row: dict[str, Any]) -> None:
    example = read(row)
    assert list(example.turns) == EXCHANGE
    assert example.line == 7 and example.tools == ()


@pytest.mark.parametrize("key", ["systemInstruction", "system_instruction"])
def test_a_system_instruction_is_read_under_both_names_whatever_its_role(key: str) -> None:
    row = {
        key: {"role": "anything", "parts": [{"text": "Be brief."}]},
        "contents": [text("user", "a"), text("model", "b")],
    }
    assert read(row).turns[0] == Turn("system", "Be brief.")


def test_messages_have_system_developer_and_context() -> None:
    for first in ({"role": "system", "content": "S"}, {"role": "developer", "content": "S"}):
        row = {"messages": [first, {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
        assert read(row).turns[0] == Turn("system", "S")
    row = {"context": "S", "messages": [{"author": "user", "content": "a"}, {"author": "bot", "content": "b"}]}
    assert read(row).turns[0] == Turn("system", "S")


def test_tools_calls_and_responses_read_the_same_from_gemini_and_openai() -> None:
    schema = {"type": "OBJECT", "properties": {"city": {"type": "STRING"}}}
    gemini = {
        "tools": [{"functionDeclarations": [{"name": "weather", "description": "d", "parameters": schema}]}],
        "contents": [
            text("user", "Paris?"),
            {"role": "model", "parts": [{"functionCall": {"name": "weather", "args": {"city": "Paris"}}}]},
            {"role": "user", "parts": [{"functionResponse": {"name": "weather", "response": {"sky": "blue"}}}]},
            text("model", "Blue."),
        ],
    }
    lower = {"type": "object", "properties": {"city": {"type": "string"}}}
    openai = {
        "tools": [{"type": "function", "function": {"name": "weather", "description": "d", "parameters": lower}}],
        "messages": [
            {"role": "user", "content": "Paris?"},
            {"role": "assistant", "content": None, "tool_calls": [
                {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Paris"}'}}]},
            {"role": "tool", "tool_call_id": "c1", "content": '{"sky": "blue"}'},
            {"role": "assistant", "content": "Blue."},
        ],
    }  # fmt: skip
    first, second = read(gemini), read(openai)
    assert first.tools == second.tools == ({"name": "weather", "description": "d", "parameters": lower},)
    assert first.turns[1] == Turn("model", calls=(FunctionCall("weather", {"city": "Paris"}),))
    assert second.turns[1] == Turn("model", calls=(FunctionCall("weather", {"city": "Paris"}, "c1"),))
    assert first.turns[2] == Turn("tool", responses=(FunctionResponse("weather", {"sky": "blue"}),))
    assert second.turns[2] == Turn("tool", responses=(FunctionResponse("weather", '{"sky": "blue"}', "c1"),))


def test_parallel_tool_messages_become_one_turn() -> None:
    calls = [{"id": i, "type": "function", "function": {"name": "f", "arguments": "{}"}} for i in ("a", "b")]
    messages = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "", "tool_calls": calls},
        {"role": "tool", "tool_call_id": "a", "content": "1"},
        {"role": "tool", "tool_call_id": "b", "content": "2"},
        {"role": "assistant", "content": "3"},
    ]
    turns = read({"messages": messages}).turns
    assert [turn.role for turn in turns] == ["user", "model", "tool", "model"]
    assert [response.content for response in turns[2].responses] == ["1", "2"]


def test_thoughts_are_kept_apart_from_the_reply() -> None:
    reply = {"role": "model", "parts": [{"text": "hm", "thought": True}, {"text": "42"}]}
    assert read({"contents": [text("user", "q"), reply]}).turns[1] == Turn("model", "42", thought="hm")
    message = {"role": "assistant", "reasoning_content": "hm", "content": "42"}
    assert read({"messages": [{"role": "user", "content": "q"}, message]}).turns[1] == Turn("model", "42", thought="hm")


def test_a_translation_row_of_three_pieces_becomes_the_documented_prompt() -> None:
    pieces = {"role": "user", "parts": [{"text": "English"}, {"text": "Hello."}, {"text": "Spanish"}]}
    spelled = text("user", "English: Hello. Spanish:")
    for turn in (pieces, spelled):
        example = read({"contents": [turn, text("model", "Hola.")]}, data_format="translation")
        assert example.turns == (Turn("user", "English: Hello. Spanish:"), Turn("model", "Hola."))
    fault = fault_of({"contents": [{"role": "user", "parts": [{"text": "a"}, {"text": "b"}]}, text("model", "c")]},
                     data_format="translation")  # fmt: skip
    assert fault.path == "contents[0].parts"


def pair_row(**changes: Any) -> dict[str, Any]:
    row = {
        "systemInstruction": text("system", "Be brief."),
        "contents": [text("user", "Hi"), text("model", "Hello"), text("user", "Open on Sunday?")],
        "completions": [
            {"score": 0, "completion": text("model", "Shops have hours.")},
            {"score": 1.0, "completion": text("model", "Yes, 10 to 4.")},
        ],
    }
    return row | changes


def completion(words: str, score: Any = 1, **fields: Any) -> dict[str, Any]:
    return {"score": score, "completion": text("model", words), **fields}


PROMPT = (Turn("system", "Be brief."), Turn("user", "Hi"), Turn("model", "Hello"), Turn("user", "Open on Sunday?"))


@pytest.mark.parametrize("key", ["systemInstruction", "system_instruction"])
@pytest.mark.parametrize("order", [1, -1])
def test_a_preference_pair_is_read_in_any_order_and_learns_its_completions_only(key: str, order: int) -> None:
    row = pair_row()
    row[key] = row.pop("systemInstruction")
    row["completions"] = row["completions"][::order]
    chosen, rejected = parse_examples(line_of(row), 3, data_format="preference")
    assert chosen.turns == (*PROMPT, Turn("model", "Yes, 10 to 4."))
    assert rejected.turns == (*PROMPT, Turn("model", "Shops have hours."))
    for example in (chosen, rejected):
        assert (example.line, example.format, example.last_reply_only) == (3, "contents", True)
    assert fault_of(row).path == "completions"  # a pair is no row of supervised tuning


@pytest.mark.parametrize(
    "names", [("preferred_output", "non_preferred_output"), ("preferred_completion", "non_preferred_completion")]
)
def test_a_preference_pair_of_openai_gives_the_same_examples(names: tuple[str, str]) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "Open on Sunday?"},
    ]
    row = {
        "input": {"messages": messages, "tools": [], "parallel_tool_calls": True},
        names[0]: [{"role": "assistant", "content": "Yes, 10 to 4."}],
        names[1]: [{"role": "assistant", "content": "Shops have hours."}],
    }
    theirs = parse_examples(line_of(row), 3, data_format="preference")
    ours = parse_examples(line_of(pair_row()), 3, data_format="preference")
    assert [each.turns for each in theirs] == [each.turns for each in ours]


CALL = {"role": "model", "parts": [{"functionCall": {"name": "f", "args": {}}}]}
IMAGE = {"role": "user", "parts": [{"fileData": {"mimeType": "image/png", "fileUri": "gs://b/x.png"}}]}


@pytest.mark.parametrize(
    ("changes", "path", "seen"),
    [
        ({"contents": []}, "contents", "an empty list"),
        ({"contents": [text("user", "Hi"), text("model", "Yes")]}, "contents[1]", "a model turn at the end"),
        ({"completions": None}, "completions", "null"),
        ({"completions": [completion("a")]}, "completions", "a list of 1"),
        ({"completions": [completion("a"), completion("b", 0), completion("c", 0)]}, "completions", "a list of 3"),
        ({"completions": [completion("a"), {"completion": text("model", "b")}]}, "completions[1].score", "null"),
        ({"completions": [completion("a"), completion("b", 0.5)]}, "completions[1].score", "the number 0.5"),
        ({"completions": [completion("a"), completion("b", "0")]}, "completions[1].score", '"0"'),
        ({"completions": [completion("a"), completion("b", False)]}, "completions[1].score", "false"),
        ({"completions": [completion("a"), completion("b")]}, "completions", "two completions with score 1"),
        ({"completions": [completion("a", 0), completion("b", 0)]}, "completions", "two completions with score 0"),
        ({"completions": [completion("a"), completion("a", 0)]}, "completions[0].completion", "the same text twice"),
        ({"completions": [completion("a"), completion(" ", 0)]}, "completions[1].completion", "a turn without text"),
        ({"completions": [completion("a"), {"score": 0, "completion": text("user", "b")}]},
         "completions[1].completion", "a user turn"),
        ({"completions": [completion("a"), {"score": 0}]}, "completions[1].completion", "null"),
        ({"completions": [completion("a"), {"score": 0, "completion": CALL}]},
         "completions[1].completion", "a function call"),
        ({"completions": [completion("a"), completion("b", 0, weight=2)]},
         "completions[1].weight", "an unknown field"),
        ({"contents": [IMAGE]}, "contents[0].parts[0].fileData", "an image (image/png)"),
        ({"extra": 1}, "extra", "an unknown field"),
    ],
)  # fmt: skip
def test_each_fault_of_a_pair_has_its_place(changes: dict[str, Any], path: str, seen: str) -> None:
    with pytest.raises(RowFault) as caught:
        parse_examples(line_of(pair_row(**changes)), 7, data_format="preference")
    assert (caught.value.path, caught.value.seen, caught.value.line) == (path, seen, 7)


def test_contents_of_one_role_are_one_turn_and_a_request_must_wait_for_the_model() -> None:
    turns = read_conversation({"contents": [text("user", "a"), text("user", " b")]}).turns
    assert [turn.text for turn in turns] == ["a b"]
    with pytest.raises(RowFault, match="a model turn at the end"):
        read_conversation({"contents": [text("user", "a"), text("model", "b")]})


FILES = [
    ({"inlineData": {"mimeType": "image/png", "data": "AA=="}}, "an image (image/png)"),
    ({"fileData": {"mimeType": "audio/mp3", "fileUri": "gs://b/o"}}, "audio (audio/mp3)"),
    ({"file_data": {"mime_type": "video/mp4", "file_uri": "gs://b/o"}}, "a video (video/mp4)"),
    ({"fileData": {"mimeType": "application/pdf", "fileUri": "gs://b/o"}}, "a document (application/pdf)"),
]


@pytest.mark.parametrize(("part", "name"), FILES)
def test_files_are_refused_by_kind_and_place(part: dict[str, Any], name: str) -> None:
    fault = fault_of({"contents": [{"role": "user", "parts": [{"text": "see"}, part]}, text("model", "ok")]})
    assert fault.seen == name
    assert fault.path.startswith("contents[0].parts[1].")


def test_files_in_messages_are_refused_by_kind() -> None:
    image = {"type": "image_url", "image_url": {"url": "x"}}
    fault = fault_of({"messages": [{"role": "user", "content": [image]}, {"role": "assistant", "content": "ok"}]})
    assert (fault.path, fault.seen) == ("messages[0].content[0]", "an image")


ROW = {"contents": [text("user", "a"), text("model", "b")]}
BAD_ROWS: list[tuple[Any, str, str]] = [
    ([1], "", "a list of 1"),
    ({}, "", "an empty object"),
    ({"text": "x"}, "", "an object with text"),
    ({"contents": []}, "contents", "an empty list"),
    ({"contents": [text("user", "a")]}, "contents[0]", "a user turn at the end"),
    ({"contents": [text("user", "a"), text("model", "  ")]}, "contents[1]", "a turn without text"),
    ({"contents": [text("model", "a"), text("user", "b")]}, "contents[0]", "a model turn first"),
    ({"contents": [text("user", "a"), text("user", "b")]}, "contents[0]", "a user turn at the end"),
    ({"contents": [text("system", "a"), text("user", "b"), text("model", "c")]}, "contents[0].role", '"system"'),
    ({"contents": [text("user", "a"), {"role": "model", "parts": [{"text": 5}]}]}, "contents[1].parts[0].text", "5"),
    ({"contents": [text("user", "a"), {"role": "model", "parts": []}]}, "contents[1].parts", "an empty list"),
    ({"contents": [{"parts": [{"text": "a"}]}, *ROW["contents"]]}, "contents[0].role", "no role"),
    (ROW | {"extra": 1}, "extra", "an unknown field"),
    (ROW | {"systemInstruction": {"parts": [{"text": 1}]}}, "systemInstruction.parts[0]", "an object with text"),
    (ROW | {"generationConfig": {"warmth": 1}}, "generationConfig.warmth", "an unknown field"),
    (ROW | {"cachedContent": "x"}, "cachedContent", "an unknown field"),
    (ROW | {"tools": {"functionDeclarations": [{"name": "f"}, {"name": "f"}]}}, "tools[0].functionDeclarations[1].name",
     'a second declaration of "f"'),
    (ROW | {"tools": [{"googleSearch": {}}]}, "tools[0].googleSearch", "a hosted tool"),
    ({"messages": [{"role": "user", "content": "a"}]}, "messages[0]", "a user turn at the end"),
    ({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": None}]},
     "messages[1]", "a turn without text"),
    ({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": 0}]},
     "messages", "weight 0 on every reply"),
    ({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": 0.5}]},
     "messages[1].weight", "number 0.5"),
    ({"messages": [{"role": "user", "content": "a", "weight": 1}, {"role": "assistant", "content": "b"}]},
     "messages[0].weight", "number 1"),
    ({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": 0},
                   {"role": "assistant", "content": "c"}]}, "messages[2]", "replies in a row with both weights"),
    ({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "weight": 1},
     "weight", "an unknown field"),
    ({"input_text": "a"}, "output_text", "null"),
    ({"prompt": "a", "completion": ""}, "completion", "no text"),
    ({"prompt": "a", "completion": "b", "id": 1}, "id", "an unknown field"),
]  # fmt: skip


@pytest.mark.parametrize(("row", "path", "seen"), BAD_ROWS)
def test_a_bad_row_names_place_and_finding(row: Any, path: str, seen: str) -> None:
    fault = fault_of(row)
    assert fault.path == path
    assert seen in fault.seen


def test_a_response_must_answer_a_call() -> None:
    response = {"role": "user", "parts": [{"functionResponse": {"name": "g", "response": {}}}]}
    call = {"role": "model", "parts": [{"functionCall": {"name": "f", "args": {}}}]}
    assert "without a call" in fault_of({"contents": [text("user", "a"), response, text("model", "b")]}).seen
    fault = fault_of({"contents": [text("user", "a"), call, response, text("model", "b")]})
    assert fault.expected == "a response of f"


def test_a_call_in_the_middle_must_be_answered() -> None:
    call = {"functionCall": {"name": "f", "args": {}}}
    asked = {"role": "model", "parts": [call]}
    fault = fault_of({"contents": [text("user", "a"), asked, text("user", "b"), text("model", "c")]})
    assert fault.path == "contents[2]" and "function call is due" in fault.seen
    twice, once = {"role": "model", "parts": [call, call]}, {"functionResponse": {"name": "f", "response": {}}}
    answered = {"role": "user", "parts": [once]}
    fault = fault_of({"contents": [text("user", "a"), twice, answered, text("model", "c")]})
    assert (fault.path, fault.seen) == ("contents[2]", "1 responses to 2 calls")
    assert read({"contents": [text("user", "a"), asked]}).turns[1].calls, "the last call is what is learned"


@pytest.mark.parametrize(
    ("raw", "kind"), [(b"\x1f\x8b\x08\x00", "gzip"), (b"PK\x03\x04\x00", "zip"), (b"PAR1\xff\x00", "Parquet")]
)
def test_a_file_that_is_no_text_is_called_by_its_kind_in_its_first_line(raw: bytes, kind: str) -> None:
    with pytest.raises(RowFault, match=f"saw an? {kind} file, want a text file of JSON lines"):
        parse_line(raw, 1)


NASTY: list[tuple[bytes, str]] = [
    ('{"prompt": "caf\u00e9", "completion": "b"}'.encode("latin-1"), "the byte 0xE9 at byte 16"),
    (b"{'prompt': 'a', 'completion': 'b'}", "double quotes"),
    (b'{"prompt": "a", "completion": "b"} {"prompt": "c"}', "on one line of its own"),
    (b"", "empty line"),
    (b"   ", "empty line"),
    (b"{", "on one line of its own"),
    (b'{"contents": NaN}', "NaN and Infinity are not JSON"),
    (b'{"prompt": "a", "completion": Infinity}', "NaN and Infinity are not JSON"),
    (b'{"prompt": "a", "completion": 1e999}', "infinity"),
    (b'{"prompt": "\\ud800", "completion": "b"}', "surrogate"),
    (b'{"prompt": "a\\u0000", "completion": "b"}', "NUL"),
    (b'{"prompt": "a\x00", "completion": "b"}', "NUL"),
    (b'{"prompt": "\xff", "completion": "b"}', "UTF-8"),
    (b"\xef\xbb\xbf{}", "byte order mark"),
    ("{}".encode("utf-16"), "UTF-16"),
    (b'{"prompt": "a", "prompt": "c", "completion": "b"}', "same key twice"),
    (b'{"contents": [{"role": "user", "role" : "model", "parts": []}]}', "same key twice"),
    (b'{"a":' * 900 + b"1" + b"}" * 900, "saw"),
    (b"[" * 5000, "depth limit"),
    (b'{"prompt": "a", "completion": "b"} trailing', "broken JSON"),
    (b"prompt,completion", "broken JSON"),
]


@pytest.mark.parametrize(("raw", "words"), NASTY)
def test_a_nasty_line_is_a_fault_and_never_a_crash(raw: bytes, words: str) -> None:
    assert words in str(fault_of(raw))


def test_text_that_looks_like_keys_is_not_taken_for_duplicates() -> None:
    for words in ('":', '{"a": 1, "a": 2}', '\\":', 'x"', "ends with a backslash\\"):
        assert read({"prompt": words, "completion": words}).turns[0].text == words
    deep = {"contents": [text("user", '{"role": "role"}'), text("model", '{"role":"x"}')]}
    assert read(deep).turns[1].text == '{"role":"x"}'


def test_a_byte_order_mark_and_carriage_returns_are_taken_off() -> None:
    example = parse_line(b'\xef\xbb\xbf{"prompt": "a", "completion": "b"}\r\n', 1)
    assert example.turns == (Turn("user", "a"), Turn("model", "b"))


def test_arguments_that_lose_digits_or_nest_too_deep_are_refused() -> None:
    deep: Any = 1
    for _ in range(80):
        deep = [deep]
    for value, words in ((2**80, "at most 64 bits"), (deep, "flatter")):
        call = {"role": "model", "parts": [{"functionCall": {"name": "f", "args": {"x": value}}}]}
        assert words in fault_of({"contents": [text("user", "a"), call]}).expected
