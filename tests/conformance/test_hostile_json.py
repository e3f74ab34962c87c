"""JSON that no client should send, at every door that takes a body: never a 5xx, always an error in words."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import httpx
import pytest

from sarto.api.http.routing import Route
from sarto.api.routes import ROUTES

from .storage_server import Server

BIG = b"1" + b"0" * 400
VALUES = {
    "big integer": BIG, "63 bits": str(2**63).encode(), "overflow": b"1e999", "tiny": b"-5e-324", "minus zero": b"-0.0",
    "NaN": b"NaN", "half a surrogate": b'"\\ud800"', "NUL": b'"\\u0000"', "nested": b"[" * 3000 + b"]" * 3000,
    "nested objects": b'{"a":' * 200 + b"1" + b"}" * 200, "invalid UTF-8": b'"\xff\xfe"', "null": b"null",
    "list": b"[null]", "long text": b'"' + b"x" * 70_000 + b'"',
}  # fmt: skip
FIELDS = (
    "name", "model", "messages", "contents", "seed", "max_tokens", "temperature", "baseModel", "labels", "metadata",
    "supervisedTuningSpec", "sourceObjects", "policy", "rows", "instances", "displayName", "generationConfig", "n",
)  # fmt: skip
PLACES = {"project": "demo", "location": "us-central1", "bucket": "hostile", "publisher": "google", "object": "o"}


def bodies(value: bytes) -> list[bytes]:
    """The value alone, in fields that doors know, given twice, and behind a byte order mark."""
    members = b",".join(json.dumps(name).encode() + b":" + value for name in FIELDS)
    known = b'{"messages":[{"role":"user","content":"Hi"}],"contents":[{"parts":[{"text":"Hi"}]}],"max_tokens":1,'
    return [
        value, b"{" + members + b"}", known + b'"seed":' + value + b"}", known + b'"seed":1,"seed":' + value + b"}",
        b'\xef\xbb\xbf{"labels":{"a":' + value + b"}}",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("home"))
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def http(server: Server) -> Iterator[httpx.Client]:
    with server.http() as http:
        http.post("/storage/v1/b", params={"project": "demo"}, json={"name": "hostile"})
        yield http


def takes_a_body(route: Route) -> bool:
    return route.method in ("POST", "PUT", "PATCH")


@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES)
def test_no_json_breaks_a_door(http: httpx.Client, value: bytes) -> None:
    broken = []
    for route in filter(takes_a_body, ROUTES):
        path = re.sub(r"\{(\w+)[^}]*\}", lambda found: PLACES.get(found[1], "7"), route.path)
        for number, body in enumerate(bodies(value)):
            answer = http.request(route.method, path, content=body, headers={"Content-Type": "application/json"})
            if answer.status_code >= 500 or (answer.status_code >= 400 and "rror" not in answer.text):
                broken.append((route.method, path, number, answer.status_code, answer.text[:200]))
    assert not broken, "\n".join(map(str, broken[:20]))
