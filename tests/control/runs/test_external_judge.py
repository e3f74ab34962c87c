"""Judges elsewhere over real HTTP: what they are sent, what comes back, and what goes wrong with them."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from sarto.configuration import Judge
from sarto.contract.places import Places
from sarto.control.context import JudgeEndpoint
from sarto.control.executors.executor import Launch, clean_environment
from sarto.control.executors.local import LocalExecutor
from sarto.control.runs.external_judge import ask, ask_one
from sarto.control.runs.model_relay import answering
from sarto.engine.evaluation.generate import spread
from sarto.engine.programs.relayed_model import RelayedModels
from sarto.errors import (
    FailedPrecondition,
    Internal,
    InvalidArgument,
    ResourceExhausted,
    SartoError,
    Unauthenticated,
    Unavailable,
)
from sarto.schema.generation import GenerateContentRequest
from tests.judge_server import KEY, judge_server, seen

SCHEMA = {
    "type": "OBJECT",
    "properties": {
        "explanation": {"type": "STRING", "maxLength": 400},
        "score": {"type": "STRING", "enum": ["1", "2", "3", "4", "5"]},
    },
    "required": ["explanation", "score"],
    "propertyOrdering": ["explanation", "score"],
}
REQUEST = {
    "contents": [{"role": "user", "parts": [{"text": "Rate this: "}, {"text": "hello"}]}],
    "systemInstruction": {"parts": [{"text": "Be strict."}]},
    "generationConfig": {
        "temperature": 1.0, "seed": 3, "maxOutputTokens": 64, "responseMimeType": "application/json",
        "responseSchema": SCHEMA,
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with judge_server() as address:
        yield address


def judge(server: str, model: str = "fair", kind: Any = "openai", **fields: Any) -> JudgeEndpoint:
    base = f"{server}/v1" if kind == "openai" else f"{server}/v1beta"
    key = fields.pop("key", KEY)
    settings = {"name": "elsewhere", "kind": kind, "base_url": base, "model": model, "private_address": True}
    return JudgeEndpoint(Judge(**settings | fields), key)


def text(response: dict[str, Any]) -> str:
    return str(response["candidates"][0]["content"]["parts"][0]["text"])


@pytest.mark.parametrize("kind", ["openai", "gemini"])
def test_a_judge_elsewhere_is_asked_in_its_own_form_and_held_to_the_schema(server: str, kind: str) -> None:
    reply = json.loads(text(ask(judge(server, kind=kind), REQUEST)))
    assert reply["score"] in "12345" and reply["explanation"] == "so I find"
    sent = seen(server)[-1]
    if kind == "openai":
        assert sent["path"] == "/v1/chat/completions"
        assert sent["headers"]["authorization"] == f"Bearer {KEY}"
        body = sent["body"]
        assert body["messages"] == [
            {"role": "system", "content": "Be strict."},
            {"role": "user", "content": "Rate this: hello"},
        ]
        assert (body["temperature"], body["seed"], body["max_tokens"]) == (1.0, 3, 64)
        held = body["response_format"]["json_schema"]
        assert held["strict"] and held["schema"]["additionalProperties"] is False
        assert held["schema"]["properties"] == {
            "explanation": {"type": "string"},
            "score": {"type": "string", "enum": ["1", "2", "3", "4", "5"]},
        }
    else:
        assert sent["path"] == "/v1beta/models/fair:generateContent"
        assert sent["headers"]["x-goog-api-key"] == KEY
        assert sent["body"] == REQUEST


def test_an_endpoint_that_knows_no_schemas_is_asked_for_json_alone(server: str) -> None:
    plain = {name: value for name, value in REQUEST.items() if name != "systemInstruction"}
    ask(judge(server, replies="json", token_limit="max_completion_tokens"), plain)
    body = seen(server)[-1]["body"]
    assert [message["role"] for message in body["messages"]] == ["user"]
    assert body["response_format"] == {"type": "json_object"}
    assert body["max_completion_tokens"] == 64 and "max_tokens" not in body
    ask(judge(server, kind="gemini", replies="json"), REQUEST)
    assert "responseSchema" not in seen(server)[-1]["body"]["generationConfig"]


@pytest.mark.parametrize(
    ("model", "kind", "words"),
    [
        ("shut", Unauthenticated, "HTTP 401: Not with …."),
        ("broken", Unavailable, "HTTP 500: out of order"),
        ("full", ResourceExhausted, "HTTP 429: too many"),
        ("silent", Unavailable, "TimeoutError"),
    ],
)
def test_what_goes_wrong_with_a_judge_is_named_and_never_with_its_key(
    server: str, model: str, kind: type[SartoError], words: str
) -> None:
    pauses: list[float] = []
    found = judge(server, model, timeout_seconds=0.3)
    with pytest.raises(kind, match=words) as error:
        ask(found, REQUEST, pauses.append)
    assert KEY not in str(error.value.to_status()) and KEY not in repr(found)
    assert pauses == ([0.0] if model == "full" else [])


def test_a_judge_on_a_private_address_is_asked_only_where_that_is_allowed(server: str) -> None:
    with pytest.raises(InvalidArgument, match="not an https URL"):
        ask(judge(server, private_address=False), REQUEST)
    with pytest.raises(InvalidArgument, match=r"only 443 and 8443.*private_address = true"):
        ask(judge(server.replace("http:", "https:"), private_address=False), REQUEST)
    with pytest.raises(Unavailable, match=r"no public address.*private_address = true"):
        ask(judge("https://127.0.0.1/v1", private_address=False), REQUEST)


@pytest.mark.parametrize("kind", ["openai", "gemini"])
def test_an_answer_in_another_form_is_an_error_of_the_judge(server: str, kind: str) -> None:
    with pytest.raises(Internal, match=f"not in the form of {kind}"):
        ask(judge(server, "strange", kind), REQUEST)


def test_a_run_calls_a_url_through_its_folder_if_it_was_named(tmp_path: Path) -> None:
    def post(url: str, body: bytes, seconds: float) -> object:
        if url.endswith("away"):
            raise Unavailable("not there")
        return [url, json.loads(body), seconds]

    (tmp_path / "spec.json").write_text("{}")
    executor = LocalExecutor(clean_environment(os.environ), [sys.executable, "-c", "import time; time.sleep(600)"])
    run = executor.start(Launch("run", "workspace/spec.json", Places({"workspace": tmp_path}), tmp_path / "log"))
    named = ["https://r.example/x", "https://r.example/away"]
    with answering(run, "workspace", named, partial(ask_one, {}), post):
        outside = RelayedModels(tmp_path)
        found = asyncio.run(outside.post(named[0], b'{"example": {"a": 1}}', 5.0))
        assert found == [named[0], {"example": {"a": 1}}, 5.0]
        with pytest.raises(Unavailable, match="not there"):
            asyncio.run(outside.post(named[1], b"{}", 5.0))
        with pytest.raises(FailedPrecondition, match="was not named"):
            asyncio.run(outside.post("https://other.example/", b"{}", 5.0))
    run.stop(0.0)


async def _ask_all(outside: RelayedModels, names: list[str], count: int) -> list[str]:
    found = {name: outside.asking(name) for name in names}

    async def one(name: str) -> str:
        try:
            return str((await found[name](GenerateContentRequest.read(REQUEST))).candidates[0].finish_reason)
        except SartoError as error:
            return f"{error.status}: {error.message}"

    return await spread([names[index % len(names)] for index in range(count)], one, 16)


def test_a_run_asks_through_its_folder_and_gives_up_on_who_is_away(server: str, tmp_path: Path) -> None:
    nobody = Judge(name="away", kind="openai", base_url="http://127.0.0.1:9/v1", model="x", private_address=True)
    away = JudgeEndpoint(nobody)
    judges = {"fair": judge(server), "away": away}
    (tmp_path / "spec.json").write_text("{}")
    executor = LocalExecutor(clean_environment(os.environ), [sys.executable, "-c", "import time; time.sleep(600)"])
    run = executor.start(
        Launch("run", "workspace/spec.json", Places({"workspace": tmp_path}), tmp_path / "log")
    )  # the test itself is the program at the other end of the relay
    with answering(run, "workspace", ["fair", "away", "gone"], partial(ask_one, judges)):
        outside = RelayedModels(tmp_path)
        assert asyncio.run(_ask_all(outside, ["fair"], 40)) == ["STOP"] * 40
        answers = asyncio.run(_ask_all(outside, ["away"], 60))
        assert answers[0] == "UNAVAILABLE: away could not be reached: ConnectionRefusedError"
        assert answers[-1].startswith("FAILED_PRECONDITION: The autorater away failed 8 times in a row")
        [gone] = asyncio.run(_ask_all(outside, ["gone"], 1))
        assert "not configured on this server any more" in gone
        [unknown] = asyncio.run(_ask_all(outside, ["unknown"], 1))
        assert "was not named" in unknown
    run.stop(0.0)
    asked = (tmp_path / "asked.jsonl").read_text()
    assert KEY not in asked + (tmp_path / "answered.jsonl").read_text()
    assert len(asked.splitlines()) < 40 + 60
