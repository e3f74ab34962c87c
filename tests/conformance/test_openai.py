"""The real OpenAI client over a real port: base and tuned models, streaming, tools, structured answers, errors."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from .service import Service

PARENT = "projects/demo/locations/us-central1"
BASE = "google/gemini-2.0-flash-001"
QUESTION: list[Any] = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "q1"}]
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather of a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "enum": ["Oslo", "Rome"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}


@pytest.fixture(params=[f"/v1/{PARENT}/endpoints/openapi", f"/v1beta1/{PARENT}/endpoints/openapi", "/openai/v1"])
def client(request: pytest.FixtureRequest, service: Service) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=service.address + request.param, api_key=service.token(), max_retries=0) as client:
        yield client


@pytest.fixture
def plain(service: Service) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{service.address}/openai/v1", api_key=service.token(), max_retries=0) as client:
        yield client


def test_a_base_model_answers_at_each_place(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model=BASE, messages=QUESTION, max_tokens=5, temperature=0)
    assert answer.choices[0].finish_reason == "length"
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].message.content
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 5
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 5


def test_models_are_listed_and_found(client: openai.OpenAI, tuned: dict[str, Any]) -> None:
    ids = [model.id for model in client.models.list()]
    assert BASE in ids
    assert tuned["tunedModel"]["endpoint"] in ids
    assert client.models.retrieve(BASE).id == BASE


def test_a_tuned_model_answers_by_name_and_at_its_own_endpoint(
    plain: openai.OpenAI, service: Service, tuned: dict[str, Any]
) -> None:
    endpoint = tuned["tunedModel"]["endpoint"]
    by_name = plain.chat.completions.create(model=endpoint, messages=QUESTION[1:], temperature=0, max_tokens=8)
    with openai.OpenAI(base_url=f"{service.address}/v1/{endpoint}", api_key=service.token()) as own:
        by_path = own.chat.completions.create(model="anything", messages=QUESTION[1:], temperature=0, max_tokens=8)
    assert by_name.choices[0].message.content == by_path.choices[0].message.content
    base = plain.chat.completions.create(model=BASE, messages=QUESTION[1:], temperature=0, max_tokens=8)
    assert base.choices[0].message.content != by_name.choices[0].message.content


def test_a_stream_gives_the_same_text_in_pieces_and_its_usage(plain: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": BASE, "messages": QUESTION, "temperature": 0, "max_tokens": 20}
    whole = plain.chat.completions.create(**asked)
    with plain.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}) as stream:
        pieces = list(stream)
    text = "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices)
    assert text == whole.choices[0].message.content
    assert pieces[0].choices[0].delta.role == "assistant"
    assert [piece.choices[0].finish_reason for piece in pieces if piece.choices][-1] == "length"
    assert pieces[-1].usage == whole.usage
    assert len(pieces) > 5


def test_sampling_options_are_honoured(plain: openai.OpenAI) -> None:
    answer = plain.chat.completions.create(
        model=BASE, messages=QUESTION, max_tokens=4, n=2, seed=5, logprobs=True, top_logprobs=3, presence_penalty=0.5
    )
    assert len(answer.choices) == 2
    logprobs = answer.choices[1].logprobs
    assert logprobs is not None and logprobs.content is not None
    assert len(logprobs.content[0].top_logprobs) == 3
    again = plain.chat.completions.create(
        model=BASE, messages=QUESTION, max_tokens=4, n=2, seed=5, presence_penalty=0.5
    )
    assert [c.message.content for c in again.choices] == [c.message.content for c in answer.choices]


def test_a_demanded_tool_is_called_and_its_answer_is_read(plain: openai.OpenAI) -> None:
    messages = [*QUESTION]
    answer = plain.chat.completions.create(model=BASE, messages=messages, tools=[WEATHER], tool_choice="required")
    assert answer.choices[0].finish_reason == "tool_calls"
    calls = answer.choices[0].message.tool_calls
    assert calls is not None
    call = calls[0]
    assert call.type == "function"
    assert call.function.name == "get_weather"
    assert json.loads(call.function.arguments)["city"] in ("Oslo", "Rome")
    messages += [answer.choices[0].message.model_dump(exclude_none=True)]
    messages += [{"role": "tool", "tool_call_id": call.id, "content": '{"degrees": 4}'}]
    after = plain.chat.completions.create(model=BASE, messages=messages, tools=[WEATHER], max_tokens=5)
    assert after.choices[0].message.content


def test_a_tool_call_streams(plain: openai.OpenAI) -> None:
    with plain.chat.completions.create(
        model=BASE, messages=QUESTION, tools=[WEATHER], stream=True,
        tool_choice={"type": "function", "function": {"name": "get_weather"}},
    ) as stream:  # fmt: skip
        pieces = list(stream)
    calls = [call for piece in pieces for call in piece.choices[0].delta.tool_calls or ()]
    assert len(calls) == 1
    assert calls[0].function is not None
    assert json.loads(calls[0].function.arguments or "")["city"] in ("Oslo", "Rome")
    assert pieces[-1].choices[0].finish_reason == "tool_calls"


def test_a_schema_is_followed(plain: openai.OpenAI) -> None:
    schema = {
        "type": "object",
        "properties": {"ok": {"type": "boolean"}, "size": {"enum": ["small", "large"]}},
        "required": ["ok", "size"],
        "additionalProperties": False,
    }
    wanted: Any = {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": schema}}
    answer = plain.chat.completions.create(model=BASE, messages=QUESTION, response_format=wanted)
    found = json.loads(answer.choices[0].message.content or "")
    assert set(found) == {"ok", "size"} and found["size"] in ("small", "large")


def test_faults_come_as_openai_errors(plain: openai.OpenAI, service: Service) -> None:
    with pytest.raises(openai.NotFoundError):
        plain.chat.completions.create(model="google/no-such-model", messages=QUESTION)
    with pytest.raises(openai.BadRequestError) as refused:
        plain.chat.completions.create(model=BASE, messages=QUESTION, logit_bias={"1": 5})
    assert refused.value.param == "logit_bias"
    with pytest.raises(openai.BadRequestError, match="reads text only"):
        image: Any = [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}]
        plain.chat.completions.create(model=BASE, messages=[{"role": "user", "content": image}])
    stranger = openai.OpenAI(base_url=f"{service.address}/openai/v1", api_key="wrong", max_retries=0)
    with stranger, pytest.raises(openai.AuthenticationError):
        stranger.models.list()
