"""Answers that are valid by construction, whatever a random model would like to say."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from sarto.contract.common import BaseWeights
from sarto.engine.serving.grammars import answer_grammar, json_schema
from sarto.engine.serving.reply_parser import Reply
from sarto.errors import InvalidArgument
from sarto.schema.generation import GenerateContentRequest, GenerationConfig
from tests.serving.making import Asker, parts_of, request, running_engine, text_of
from tests.tiny import make_tiny_base

PERSON = {
    "type": "OBJECT",
    "properties": {
        "name": {"type": "STRING", "maxLength": "8"},
        "age": {"type": "INTEGER", "nullable": True},
        "kind": {"type": "STRING", "format": "enum", "enum": ["cat", "dog"]},
        "tags": {"type": "ARRAY", "items": {"type": "STRING", "enum": ["a", "b"]}, "maxItems": "2"},
    },
    "required": ["name", "kind", "tags"],
    "propertyOrdering": ["kind", "name", "tags", "age"],
}
FUNCTIONS = [
    {
        "functionDeclarations": [
            {
                "name": "get_weather",
                "description": "Weather of a city",
                "parameters": {
                    "type": "OBJECT",
                    "properties": {"city": {"type": "STRING", "enum": ["Oslo", "Rome"]}},
                    "required": ["city"],
                },
            },
            {"name": "stop", "description": "Stop it"},
        ]
    }
]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> BaseWeights:
    return make_tiny_base(tmp_path_factory.mktemp("base") / "llama")


@pytest.fixture(scope="module")
def asker() -> Iterator[Asker]:
    with running_engine() as asker:
        yield asker


def ask_json(asker: Asker, base: BaseWeights, seed: int, **config: Any) -> str:
    asked = request(temperature=2, topK=300, topP=1, seed=seed, maxOutputTokens=400, **config)
    chunks = asker.ask(base, asked)
    assert chunks[-1]["candidates"][0]["finishReason"] == "STOP"
    return text_of(chunks)


@pytest.mark.parametrize("seed", range(8))
def test_a_google_schema_is_followed_in_its_order(asker: Asker, base: BaseWeights, seed: int) -> None:
    found = json.loads(ask_json(asker, base, seed, responseMimeType="application/json", responseSchema=PERSON))
    assert list(found)[:3] == ["kind", "name", "tags"]
    assert set(found) <= {"kind", "name", "tags", "age"}
    assert found["kind"] in ("cat", "dog")
    assert len(found["name"]) <= 8
    assert len(found["tags"]) <= 2 and set(found["tags"]) <= {"a", "b"}
    assert found.get("age") is None or isinstance(found["age"], int)


@pytest.mark.parametrize("seed", range(3))
def test_a_json_schema_is_followed(asker: Asker, base: BaseWeights, seed: int) -> None:
    schema = {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 3}
    found = json.loads(ask_json(asker, base, seed, responseMimeType="application/json", responseJsonSchema=schema))
    assert len(found) in (2, 3)
    assert all(isinstance(value, bool) for value in found)


def test_an_enum_is_answered_as_plain_text(asker: Asker, base: BaseWeights) -> None:
    schema = {"type": "STRING", "enum": ["red wine", "red", "white"]}
    found = {ask_json(asker, base, seed, responseMimeType="text/x.enum", responseSchema=schema) for seed in range(20)}
    assert found <= {"red wine", "red", "white"}
    assert len(found) > 1


def test_candidates_and_plain_requests_run_beside_constrained_ones(asker: Asker, base: BaseWeights) -> None:
    schema = {"type": "STRING", "enum": ["yes", "no"]}
    asked = request(temperature=2, candidateCount=4, responseMimeType="text/x.enum", responseSchema=schema)
    first, second = asker.send(base, asked), asker.send(base, request())
    answers = asker.wait([first, second])
    assert all(text_of(answers[first], index) in ("yes", "no") for index in range(4))
    assert text_of(answers[second]) == text_of(asker.ask(base, request()))


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"responseSchema": PERSON}, "response_mime_type"),
        ({"responseMimeType": "text/x.enum"}, "enum"),
        ({"responseMimeType": "application/json", "responseJsonSchema": {"type": "strange"}}, "cannot be enforced"),
        ({"responseMimeType": "application/json", "responseJsonSchema": {}, "responseSchema": PERSON}, "not both"),
    ],
)
def test_schemas_without_meaning_are_refused(
    asker: Asker, base: BaseWeights, config: dict[str, Any], named: str
) -> None:
    with pytest.raises(InvalidArgument, match=named):
        asker.ask(base, request(**config))


def calling(mode: str, seed: int | None = None, **more: Any) -> GenerateContentRequest:
    row = {
        "contents": [{"role": "user", "parts": [{"text": "Hi"}]}],
        "tools": FUNCTIONS,
        "toolConfig": {"functionCallingConfig": {"mode": mode, **more}},
        "generationConfig": {"temperature": 2, "topK": 300, "topP": 1, "maxOutputTokens": 600, "seed": seed},
    }
    return GenerateContentRequest.read(row)


def test_any_answers_with_one_call_that_fits_its_declaration(asker: Asker, base: BaseWeights) -> None:
    for _ in range(6):
        parts = parts_of(asker.ask(base, calling("ANY", allowedFunctionNames=["get_weather"])))
        assert len(parts) == 1
        call = parts[0]["functionCall"]
        assert call["name"] == "get_weather"
        assert set(call["args"]) == {"city"} and call["args"]["city"] in ("Oslo", "Rome")
    names = {parts_of(asker.ask(base, calling("ANY")))[0]["functionCall"]["name"] for _ in range(12)}
    assert names == {"get_weather", "stop"}


def test_auto_and_none_answer_with_text(asker: Asker, base: BaseWeights) -> None:
    for mode in ("AUTO", "NONE"):
        parts = parts_of(asker.ask(base, calling(mode, seed=1)))  # another seed may end its turn at once
        assert parts and all("text" in part for part in parts)


def test_an_undeclared_function_cannot_be_allowed(asker: Asker, base: BaseWeights) -> None:
    with pytest.raises(InvalidArgument, match="Not declared: fly"):
        asker.ask(base, calling("ANY", allowedFunctionNames=["fly"]))


def test_a_call_in_the_middle_of_text_becomes_a_part() -> None:
    reply = Reply(frozenset(["f"]))
    whole = 'Let me see. <tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>'
    parts = [part for letter in whole for part in reply.push(letter)]
    assert "".join(part["text"] for part in parts) == "Let me see. "
    assert reply.finish() == [{"functionCall": {"name": "f", "args": {"x": 1}}}]


def test_a_bare_json_call_becomes_a_part_and_other_json_stays_text() -> None:
    call, text = Reply(frozenset(["f"])), Reply(frozenset(["f"]))
    assert call.push('{"name": "f", "parameters": {}}') == []
    assert call.finish() == [{"functionCall": {"name": "f", "args": {}}}]
    assert text.push('{"answer": 4}') + text.finish() == [{"text": '{"answer": 4}'}]


@pytest.mark.parametrize(
    ("text", "until"),
    [
        ('{"answer": "long …"}', '{"an'),
        ('{"name": "Ada", "born": 1815}', '{"name": "A'),
        ('{ "name" : "get_time" }', '{ "name" : "get_t'),
        ("{x}", "{x"),
        (' {"parameterless": 1}', ' {"parameterl'),
    ],
)
def test_json_that_can_be_no_call_is_not_held_back(text: str, until: str) -> None:
    """Pieces come as soon as the first key, or the name, is not one of a call."""
    reply, seen = Reply(frozenset(["get_weather"])), ""
    for number, letter in enumerate(text, 1):
        seen += "".join(part["text"] for part in reply.push(letter))
        assert seen == (text[:number] if number >= len(until) else "")
    assert reply.finish() == []


@pytest.mark.parametrize(
    "arguments",
    ['{"id": 123456789012345678901234}', '{"x": NaN}', '{"a": 1, "a": 2}', '{"a": ' + "[" * 900 + "]" * 900 + "}"],
)
def test_a_call_that_would_change_when_it_is_read_stays_text(arguments: str) -> None:
    text = f'<tool_call>\n{{"name": "f", "arguments": {arguments}}}\n</tool_call>'
    reply = Reply(frozenset(["f"]))
    parts = reply.push(text) + reply.finish()
    assert "".join(part["text"] for part in parts) == text


def test_a_required_property_that_is_not_declared_is_passed_over() -> None:
    schema = {"type": "OBJECT", "properties": {"a": {"type": "STRING"}}, "required": ["a", "b"]}
    assert json_schema(schema)["required"] == ["a"]


@pytest.mark.parametrize(
    "schema",
    [{"anyOf": 5}, {"minItems": "many"}, {"type": "OBJECT", "properties": {"a": 5}}, {"propertyOrdering": 5},
     {"type": "OBJECT", "required": 5, "properties": {}}],
)  # fmt: skip
def test_a_schema_that_is_none_is_refused_by_its_field(schema: dict[str, Any]) -> None:
    config = GenerationConfig(response_mime_type="application/json", response_schema=schema)
    try:
        found = answer_grammar(config)
    except InvalidArgument as error:
        assert error.violations[0].field == "generation_config.response_schema"
    else:
        assert found is not None, "what is left is compiled, which refuses it by the same field"


@pytest.mark.parametrize("schema", [7, 1.5, True, "object", ["object"]])
def test_a_json_schema_that_is_no_object_is_refused_by_its_field(schema: Any) -> None:
    config = GenerationConfig(response_mime_type="application/json", response_json_schema=schema)
    with pytest.raises(InvalidArgument, match="write a JSON object") as refused:
        answer_grammar(config)
    assert refused.value.violations[0].field == "generation_config.response_json_schema"


def test_text_with_an_angle_bracket_is_not_held_for_ever() -> None:
    reply = Reply(frozenset(["f"]))
    parts = [part for letter in "a < b and <tool box" for part in reply.push(letter)]
    assert "".join(part["text"] for part in parts + reply.finish()) == "a < b and <tool box"


def test_googles_schema_becomes_a_json_schema() -> None:
    found = json_schema({"type": "OBJECT", "properties": {"a": {"type": "NUMBER", "nullable": True}}, "title": "x"})
    assert found == {
        "type": "object",
        "properties": {"a": {"anyOf": [{"type": "number"}, {"type": "null"}]}},
        "additionalProperties": False,
    }


@pytest.mark.parametrize(
    "schema",
    [
        {"minItems": "9" * 5000},
        {"minItems": "a"},
        {"maxLength": -1},
        {"maxLength": 1.5},
        {"minItems": [1]},
        {"minItems": True},
        {"anyOf": 5},
        {"properties": {"a": {}}, "propertyOrdering": 5},
        {"properties": {"a": {}}, "propertyOrdering": [["a"]]},
        {"items": {"items": {"max_items": {}}}},
    ],
)
def test_a_part_of_a_schema_that_has_no_meaning_is_refused(schema: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"is not|does not hold"):
        json_schema(schema)


def test_counts_may_be_texts_or_whole_numbers() -> None:
    assert json_schema({"minItems": "3", "max_items": 4.0}) == {"minItems": 3, "maxItems": 4}
