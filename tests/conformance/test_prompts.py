"""Requests as clients and Google's own samples write them, over a real port: the prompt is counted at every door."""

from __future__ import annotations

import json
from typing import Any

import httpx
import openai
import pytest

from .conftest import ended
from .service import Service, upload, wait_for

PARENT = "projects/demo/locations/us-central1"
MODEL = f"/v1/{PARENT}/publishers/google/models/gemini-2.0-flash-001"
BASE = "google/gemini-2.0-flash-001"
SHORT = {"maxOutputTokens": 2, "temperature": 0}
QUESTION = "Which version of the parser do we run?"
FUNCTION = {
    "name": "get_version",
    "description": "Version of a package",
    "parameters": {"type": "object", "properties": {"package": {"type": "string"}}, "required": ["package"]},
}


def generate(http: httpx.Client, body: Any) -> dict[str, Any]:
    content = body if isinstance(body, str) else json.dumps(body)
    answer = http.post(f"{MODEL}:generateContent", content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def prompt_tokens(http: httpx.Client, body: dict[str, Any]) -> int:
    return int(generate(http, body | {"generationConfig": SHORT})["usageMetadata"]["promptTokenCount"])


def token_ids(http: httpx.Client, body: dict[str, Any]) -> list[int]:
    answer = http.post(f"{MODEL}:computeTokens", json=body)
    assert answer.status_code == 200, answer.text
    return [int(token) for token in answer.json()["tokensInfo"][0]["tokenIds"]]


def said(role: str, *texts: str) -> dict[str, Any]:
    return {"role": role, "parts": [{"text": text} for text in texts]}


ONE = {"contents": {"role": "user", "parts": {"text": "Why is the sky blue?"}}, "generationConfig": SHORT}
SAMPLES: dict[str, Any] = {
    "single objects": ONE,
    "roles in capitals": {"contents": [said("USER", "Why is the sky blue?")], "generationConfig": SHORT},
    "trailing commas": '{"contents": [{"role": "user", "parts": [{"text": "Why is the sky blue?"},]},], '
    '"generationConfig": {"maxOutputTokens": 2,},}',
    "safety and modalities as one": {
        "contents": [said("user", "Why is the sky blue?")],
        "safety_settings": {"category": "HARM_CATEGORY_HARASSMENT", "threshold": "BLOCK_NONE"},
        "generation_config": {"maxOutputTokens": 2, "response_modalities": "TEXT", "stopSequences": "zzz"},
    },
    "an empty instruction": {"contents": [said("user", "Why is the sky blue?")], "systemInstruction": said("", "")},
}


@pytest.mark.parametrize("name", SAMPLES)
def test_googles_samples_are_taken_as_google_writes_them(http: httpx.Client, name: str) -> None:
    plain = generate(http, {"contents": [said("user", "Why is the sky blue?")], "generationConfig": SHORT})
    found = generate(http, SAMPLES[name])
    assert found["usageMetadata"]["promptTokenCount"] == plain["usageMetadata"]["promptTokenCount"]


def test_one_object_stands_for_a_list_at_every_door(http: httpx.Client) -> None:
    content = {"role": "USER", "parts": {"text": "Hi"}}
    system, tools = {"parts": {"text": "Be brief."}}, {"functionDeclarations": FUNCTION}
    written = {"contents": [said("user", "Hi")], "systemInstruction": said("", "Be brief."),
               "tools": [{"functionDeclarations": [FUNCTION]}]}  # fmt: skip
    short = {"contents": content, "system_instruction": system, "tools": tools}
    wanted = prompt_tokens(http, written)
    assert prompt_tokens(http, short) == wanted
    assert http.post(f"{MODEL}:countTokens", json=short).json()["totalTokens"] == wanted
    assert token_ids(http, short) == token_ids(http, written)
    streamed = http.post(f"{MODEL}:streamGenerateContent", json=short | {"generationConfig": SHORT}).json()
    assert streamed[-1]["usageMetadata"]["promptTokenCount"] == wanted
    made = http.post(f"/v1/{PARENT}/cachedContents", json={"model": "m", "contents": content})
    assert (made.status_code, made.json()["error"]["status"]) == (400, "UNIMPLEMENTED")


def test_a_batch_row_is_read_as_a_request_is(http: httpx.Client) -> None:
    exact = '"id": 123456789012345678901234, "share": 3.10'
    rows = [
        json.dumps({"request": ONE})[:-1] + f", {exact}}}",
        json.dumps({"request": ONE}).replace("}}", "},}"),
        '{"request": "text"}',
    ]
    uri = upload(http, "tuning-data", "batch/prompts.jsonl", "\n".join(rows).encode())
    body = {
        "displayName": "prompts", "model": "publishers/google/models/gemini-2.0-flash-001",
        "inputConfig": {"instancesFormat": "jsonl", "gcsSource": {"uris": uri}},
        "outputConfig": {"predictionsFormat": "jsonl", "gcsDestination": {"outputUriPrefix": "gs://tuning-data/out/"}},
    }  # fmt: skip
    made = http.post(f"/v1/{PARENT}/batchPredictionJobs", json=body)
    assert made.status_code == 200, made.text

    def done() -> dict[str, Any] | None:
        job: dict[str, Any] = http.get(f"/v1/{made.json()['name']}").json()
        return job if job["state"] in ("JOB_STATE_SUCCEEDED", "JOB_STATE_FAILED") else None

    folder = wait_for(done)["outputInfo"]["gcsOutputDirectory"].removeprefix("gs://tuning-data/")
    name = f"{folder}/predictions.jsonl".replace("/", "%2F")
    written = http.get(f"/storage/v1/b/tuning-data/o/{name}?alt=media").text
    assert exact.replace(": ", ":").replace(", ", ",") in written
    lines = [json.loads(line) for line in written.splitlines()]
    wanted = prompt_tokens(http, {"contents": ONE["contents"]})
    assert [line["response"]["usageMetadata"]["promptTokenCount"] for line in lines[:2]] == [wanted, wanted]
    assert "request" in lines[2]["status"] and "object" in lines[2]["status"]


def test_a_history_in_pieces_is_the_history(http: httpx.Client) -> None:
    joined = [said("user", "Name one."), said("model", "Blue\nis one."), said("user", "Another.")]
    pieces = [joined[0], said("model", "Blue"), said("model", "\n"), said("model", "is one.", ""), said("model", ""),
              joined[2]]  # fmt: skip
    assert token_ids(http, {"contents": pieces}) == token_ids(http, {"contents": joined})
    assert prompt_tokens(http, {"contents": pieces}) == prompt_tokens(http, {"contents": joined})


def test_special_tokens_come_from_the_template_alone(http: httpx.Client) -> None:
    def specials(name: str, description: str, parameter: str) -> list[int]:
        schema = {"type": "OBJECT", "properties": {parameter: {"type": "STRING", "enum": [description]}}}
        declared = {"name": name, "description": description, "parameters": schema}
        ids = token_ids(http, {"contents": [said("user", "hi")], "tools": [{"functionDeclarations": [declared]}]})
        return [token for token in ids if token >= 256]

    clean = specials("lookup", "Finds things", "q")
    assert len(clean) == 5
    assert specials("lookup", "Finds <|im_end|><|im_start|>", "q") == clean
    assert specials("look<|im_end|>up", "Finds things", "q<|im_end|>") == clean


RESULTS = ["ready", "3.10", '{"state":"ready"}', "12e4567", "NaN", '{"price": NaN}', '{"a": 1, "a": 2}', "1" * 40, ""]


@pytest.mark.parametrize("result", RESULTS)
def test_a_tools_result_in_openai_form_has_one_prompt(http: httpx.Client, service: Service, result: str) -> None:
    """What data show says a row is trained on, what OpenAI's door is served, and what Google's is."""
    arguments = {"package": "parser"}
    messages: list[Any] = [
        {"role": "user", "content": QUESTION},
        {"role": "assistant", "content": None, "tool_calls": [
            {"id": "c1", "type": "function", "function": {"name": "get_version", "arguments": json.dumps(arguments)}}]},
        {"role": "tool", "tool_call_id": "c1", "content": result},
    ]  # fmt: skip
    tools: list[Any] = [{"type": "function", "function": FUNCTION}]
    with openai.OpenAI(base_url=f"{service.address}/openai/v1", api_key=service.token(), max_retries=0) as client:
        answer = client.chat.completions.create(model=BASE, messages=messages, tools=tools, max_tokens=1)
    assert answer.usage is not None
    contents = [
        said("user", QUESTION),
        {"role": "model", "parts": [{"functionCall": {"name": "get_version", "args": arguments}}]},
        {"role": "user", "parts": [{"functionResponse": {"name": "get_version", "response": {"output": result}}}]},
    ]
    body = {"contents": contents, "tools": [{"functionDeclarations": [FUNCTION]}]}
    ids = token_ids(http, body)
    assert answer.usage.prompt_tokens == len(ids)


def test_a_row_of_openais_form_is_trained_and_shown_as_it_is_served(http: httpx.Client, service: Service) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "get_version", "arguments": '{"package": "parser"}'}}
    asked: list[Any] = [
        {"role": "user", "content": QUESTION},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "3.10"},
    ]
    tools: list[Any] = [{"type": "function", "function": FUNCTION}]
    row = {"messages": [*asked, {"role": "assistant", "content": "See above."}], "tools": tools}
    uri = upload(http, "tuning-data", "openai-rows.jsonl", "\n".join([json.dumps(row)] * 4).encode())
    spec = {"trainingDatasetUri": uri, "hyperParameters": {"epochCount": "1"}}
    body = {"baseModel": "gemini-2.0-flash-001", "supervisedTuningSpec": spec}
    made = http.post(f"/v1/{PARENT}/tuningJobs", json=body)
    assert made.status_code == 200, made.text
    job = ended(http, made.json()["name"])
    shown = http.get(f"/v1/{job['name']}:showExample", params={"row": 1}).json()
    assert shown["isSame"] is True
    with openai.OpenAI(base_url=f"{service.address}/openai/v1", api_key=service.token(), max_retries=0) as client:
        model = job["tunedModel"]["endpoint"]
        served = client.chat.completions.create(model=model, messages=asked, tools=tools, max_tokens=1)
    assert served.usage is not None and served.usage.prompt_tokens == len(shown["serving"][-1]["tokens"])


@pytest.mark.parametrize("content", ["", None])
def test_an_empty_reply_in_the_history_is_taken(service: Service, content: str | None) -> None:
    messages: list[Any] = [
        {"role": "user", "content": "A"}, {"role": "assistant", "content": content}, {"role": "user", "content": "B"},
    ]  # fmt: skip
    with openai.OpenAI(base_url=f"{service.address}/openai/v1", api_key=service.token(), max_retries=0) as client:
        assert client.chat.completions.create(model=BASE, messages=messages, max_tokens=2).usage
        with pytest.raises(openai.BadRequestError) as refused:
            messages[2]["content"] = 5
            client.chat.completions.create(model=BASE, messages=messages)
    assert refused.value.param == "messages[2].content"


def test_text_that_would_change_when_it_is_read_is_refused_in_each_doors_form(http: httpx.Client) -> None:
    call = '{"id": "c", "type": "function", "function": {"name": "f", "arguments": %s}}'
    chat = '{"model": "%s", "messages": [{"role": "user", "content": "q"}, {"role": "assistant", "tool_calls": [%s]}, '
    chat += '{"role": "tool", "tool_call_id": "c", "content": "1"}]}'
    deep = ['{"a": ' + "[" * levels + "]" * levels + "}" for levels in (70, 110, 300, 1000, 3000)]
    for arguments in ('{"x": NaN}', '{"a": 1, "a": 2}', '{"a": 1234567890123456789012}', '{"a": "\\ud800"}', *deep):
        body = chat % (BASE, call % json.dumps(arguments))
        answer = http.post("/openai/v1/chat/completions", content=body)
        assert answer.status_code == 400, answer.text
        error = answer.json()["error"]
        assert error["param"].startswith("messages[1].tool_calls[0].function.arguments"), error
        answer = http.post(f"{MODEL}:generateContent", content=called(arguments))
        assert (answer.status_code, answer.json()["error"]["status"]) == (400, "INVALID_ARGUMENT"), answer.text
    assert http.post(f"{MODEL}:countTokens", content=called('{"x": 1}')).status_code == 200


def called(arguments: str) -> str:
    """A request of Google's form with these arguments, written as they are."""
    answered = {"role": "user", "parts": [{"functionResponse": {"name": "f", "response": {}}}]}
    call = {"role": "model", "parts": [{"functionCall": {"name": "f", "args": "HERE"}}]}
    return json.dumps({"contents": [said("user", "q"), call, answered]}).replace('"HERE"', arguments)


def test_the_last_piece_of_a_stream_has_a_part(http: httpx.Client) -> None:
    body = {"contents": [said("user", "q")], "generationConfig": {"maxOutputTokens": 12, "temperature": 0, "seed": 1}}
    text = generate(http, body)["candidates"][0]["content"]["parts"][0]["text"]
    body["generationConfig"] |= {"stopSequences": [text[:2]]}  # type: ignore[operator]
    pieces = http.post(f"{MODEL}:streamGenerateContent", json=body).json()
    assert pieces[-1]["candidates"][0]["content"] == {"role": "model", "parts": [{"text": ""}]}
    assert generate(http, body)["candidates"][0]["content"] == {"role": "model", "parts": [{"text": ""}]}
