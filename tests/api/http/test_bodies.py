"""What a body may cost: who may send one, how long, how many values and levels, and how many faults are told."""

from __future__ import annotations

import asyncio
import re
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from sarto.api.gcs.batch import MAX_CALLS, _calls
from sarto.api.http.bodies import read_value
from sarto.api.http.limits import ConcurrencyLimit, LongPolls
from sarto.api.http.routing import OPEN_BYTES, Route
from sarto.api.routes import ROUTES
from sarto.control.access import authorization
from sarto.errors import InvalidArgument, ResourceExhausted
from sarto.schema.generation import GenerateContentRequest
from sarto.schema.json_size import MOST_DEPTH, MOST_VALUES
from sarto.schema.tuning_jobs import TuningJob
from tests.api.doors import House, house
from tests.api.test_role_matrix import IDS, VALUES

WITH_BODY = [route for route in ROUTES if route.method in ("POST", "PUT", "PATCH")]
OPEN_ON_PURPOSE = {
    "/token", "/sts/token", "/v3/projects", "/v2/entries:list", "/storage/v1/b",
}  # fmt: skip
"""Paths whose body is read before a right is asked, beside those that only need a token: the project stands in it, or
nowhere."""


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"[" * 101 + b"]" * 101, "nested deeper than 100"),
        (b'{"a":' * 500 + b"1" + b"}" * 500, "nested deeper than 100"),
        (b"[" + b"[]," * MOST_VALUES + b"1]", f"more than {MOST_VALUES} values"),
        (b"[" + b'"",' * (2 * MOST_VALUES) + b'""]', f"more than {MOST_VALUES} values"),
        (b"[" + b"1," * (2 * MOST_VALUES) + b"1]", f"more than {MOST_VALUES} values"),
        (b"[" * 5000, "nested deeper than 100"),
        (b'{"a": 1', "at line 1, column"),
    ],
)
def test_a_body_with_too_many_values_or_levels_is_refused_before_it_is_parsed(body: bytes, words: str) -> None:
    with pytest.raises(InvalidArgument, match=words):
        read_value(body, "application/json")


@pytest.mark.parametrize(
    "value",
    [
        '"' + "a, b [c] {d} " * MOST_VALUES + '"',
        '"' + '\\\\\\"[[[[' * MOST_VALUES + '"',
        "[" * MOST_DEPTH + "]" * MOST_DEPTH,
        "[" + "1," * (MOST_VALUES - 2) + "1]",
        "[" + "[]," * 40_000 + "[]]",
    ],
)
def test_commas_and_brackets_inside_texts_are_not_values(value: str) -> None:
    assert read_value(value.encode(), "") is not None


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (TuningJob, {f"x{i}": 1 for i in range(50_000)}),
        (GenerateContentRequest, {"contents": [1] * 50_000}),
        (GenerateContentRequest, {"contents": [{"parts": 1}] * 50_000}),
        (GenerateContentRequest, {"safetySettings": [1] * 50_000}),
        (GenerateContentRequest, {"labels": {f"x{i}": 1 for i in range(50_000)}}),
        (GenerateContentRequest, {"generationConfig": {"responseModalities": [[]] * 50_000}}),
    ],
)
def test_of_many_faults_a_hundred_are_told_and_the_rest_is_not_looked_at(kind: Any, body: dict[str, Any]) -> None:
    began = time.process_time()
    with pytest.raises(InvalidArgument) as caught:
        kind.read(body)
    assert len(caught.value.violations) == 100
    assert caught.value.message.endswith("\tand more")
    assert time.process_time() - began < 1.0  # seven seconds and more where every fault is written out


def test_few_faults_are_all_told_and_a_long_name_is_cut() -> None:
    with pytest.raises(InvalidArgument) as caught:
        TuningJob.read({"labels": {"a": 1, "b": 2}, "x" * 100_000: 1, "baseModel": 3})
    assert len(caught.value.violations) == 4 and "more" not in caught.value.message
    assert len(caught.value.message) < 4000


def test_every_route_asks_for_the_right_before_it_reads_a_body(tmp_path: Path) -> None:
    asyncio.run(_nothing_is_read(tmp_path))


async def _nothing_is_read(home: Path) -> None:
    async with house(home) as place:
        place.account("nobody-account")
        place.account("owner-account", "roles/owner", "elsewhere")
        place.account("house-owner", "roles/owner")
        await place.ask("house-owner", "POST", "/storage/v1/b?project=demo", {"name": "a-bucket"})
        for route in WITH_BODY:
            names_a_place = "{project}" in route.path or "{bucket}" in route.path
            for name in ("nobody-account", "owner-account") if names_a_place else ("nobody-account",):
                if route.asks_first:
                    status, was_read = await _send(place, name, route)
                    assert (status in (403, 404), was_read) == (True, False), (name, route.method, route.path, status)


async def _send(place: House, name: str, route: Route) -> tuple[int, bool]:
    """The status of the answer, and whether a byte of the body was asked for."""
    path = re.sub(r"{(\w+)(=\*\*)?}", lambda found: VALUES.get(found[1], IDS), route.path)
    statuses, reads = [], []

    async def receive() -> dict[str, Any]:
        reads.append(1)
        return {"type": "http.request", "body": b"{}", "more_body": False}

    async def send(event: Any) -> None:
        if event["type"] == "http.response.start":
            statuses.append(event["status"])

    headers = [(b"authorization", f"Bearer {place.tokens[name]}".encode()), (b"content-type", b"application/json")]
    scope = {"type": "http", "method": route.method, "path": path, "raw_path": path.encode(), "query_string": b"",
             "headers": headers, "client": ("127.0.0.1", 1), "http_version": "1.1", "scheme": "http"}  # fmt: skip
    await place.doors(scope, receive, send)
    return statuses[0], bool(reads)


def test_where_no_right_is_asked_first_a_body_is_short_and_the_place_is_known() -> None:
    unasked = [route for route in WITH_BODY if not route.asks_first]
    assert {route.path for route in unasked if route.permission != "signed-in"} == OPEN_ON_PURPOSE
    longer = {route.path for route in unasked if route.most_body_bytes > OPEN_BYTES}
    assert longer == {"/batch/storage/v1"}


def test_a_right_on_one_endpoint_is_enough_to_be_heard(tmp_path: Path) -> None:
    async def ask() -> None:
        async with house(tmp_path) as place:
            email = place.account("one-endpoint")
            place.bind(email, "roles/aiplatform.user", f"locations/us-central1/endpoints/{IDS}")
            path = f"/v1/projects/demo/locations/us-central1/endpoints/{IDS}:generateContent"
            answer = await place.ask("one-endpoint", "POST", path, {"contents": [{"parts": [{"text": "a"}]}]})
            assert answer.status_code == 404, answer.text
            foreign = path.replace("demo", "elsewhere")
            assert (await place.ask("one-endpoint", "POST", foreign, {"bad": 1})).status_code == 403
            with pytest.raises(authorization.denied("a.b.c", "x").__class__):
                database = place.services.database
                authorization.require_within(
                    database, authorization.Principal("user:a@b.c", "", "user"), "aiplatform.models.get", "demo"
                )

    asyncio.run(ask())


@pytest.mark.parametrize("path", ["/token", "/sts/token"])
@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b'{"grant_type":[' + b"[]," * 300 + b"[]]}", 400),
        (b'{"grant_type":' + b"[" * 1000 + b"]" * 1000 + b"}", 400),
        (b'{"grant_type":1}', 400),
        (b'{"grant_type":"' + b"a" * 70_000 + b'"}', 413),
        (b"[]", 400),
        (b"\xff", 400),
    ],
)
def test_the_token_endpoints_take_short_texts_only(tmp_path: Path, path: str, body: bytes, status: int) -> None:
    async def ask() -> int:
        async with house(tmp_path) as place:
            headers = {"content-type": "application/json"}
            return (await place.client.post(path, content=body, headers=headers)).status_code

    assert asyncio.run(ask()) == status


def test_a_batch_of_nested_multiparts_or_of_a_million_lines_is_refused_in_one_pass() -> None:
    nested = b"".join(b"--b\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n" for _ in range(1000))
    with pytest.raises(InvalidArgument, match="application/http"):
        _calls("multipart/mixed; boundary=b", nested + b"--b--")
    for body in (b"", b"--b--", b"--b\n" * (MAX_CALLS + 1), b"a: b\n" * 200_000):
        with pytest.raises(InvalidArgument):
            _calls("multipart/mixed; boundary=b", body)
    with pytest.raises(InvalidArgument, match="headers"):
        _calls("multipart/mixed; boundary=b", b"--b\n" + b"a: b\n" * 200_000 + b"\n\n--b--")


def test_a_caller_holds_its_share_and_no_more() -> None:
    shares = ConcurrencyLimit("things", each=3, most=4)
    shares.take("a", 3)
    with pytest.raises(ResourceExhausted, match="3 for each caller"):
        shares.take("a")
    shares.take("b")
    with pytest.raises(ResourceExhausted, match="4 for all"):
        shares.take("c")
    shares.give_back("a", 3)
    shares.take("c", 3)


def test_many_waits_look_less_often() -> None:
    long_polls = LongPolls(each=1000, most=1000)
    assert long_polls.seconds(0.2) == 0.2
    with ExitStack() as places:
        for _ in range(500):
            places.enter_context(long_polls.place("a"))
        assert long_polls.seconds(0.2) == 5.0
    assert long_polls.seconds(0.2) == 0.2
