"""What a job does, told as it happens: server-sent events with a cursor, and webhooks to a real receiver."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.served import served

from .conftest import PARENT
from .service import Service, training_rows, upload, wait_for

BODY = {"baseModel": "gemini-2.0-flash-001", "supervisedTuningSpec": {"hyperParameters": {"epochCount": "1"}}}


class Receiver:
    """Answers 500 to the first message, and 200 from then on; keeps what it was sent."""

    def __init__(self) -> None:
        self.calls: list[tuple[dict[str, str], bytes]] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                receiver.calls.append(({k.lower(): v for k, v in self.headers.items()}, body))
                self.send_response(500 if len(receiver.calls) == 1 else 200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.uri = f"http://127.0.0.1:{self.server.server_port}/hook?x=1"


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    with served(made.server):
        yield made


@pytest.fixture
def open_service(tmp_path: Path) -> Iterator[Service]:
    """One that may call private addresses."""
    service = Service(tmp_path / "home")
    service.start(SARTO_WEBHOOK_PRIVATE_ADDRESSES="true")
    yield service
    service.stop()


def create(http: httpx.Client, uri: str) -> str:
    body = {**BODY, "supervisedTuningSpec": {**BODY["supervisedTuningSpec"], "trainingDatasetUri": uri}}  # type: ignore[dict-item]
    answer = http.post(f"/v1/{PARENT}/tuningJobs", json=body)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["name"])


def read_events(http: httpx.Client, path: str, most: int = 1000, **headers: str) -> list[dict[str, Any]]:
    """Events of a stream as (id, event, data), until it ends or enough were read."""
    found: list[dict[str, Any]] = []
    with http.stream("GET", path, headers={"Accept": "text/event-stream", **headers}) as answer:
        assert answer.status_code == 200 and answer.headers["content-type"] == "text/event-stream"
        fields: dict[str, str] = {}
        for line in answer.iter_lines():
            if line and not line.startswith(":"):
                name, _, value = line.partition(": ")
                fields[name] = value
            elif fields:
                found.append({**fields, "data": json.loads(fields["data"])})
                fields = {}
                if len(found) == most:
                    break
    return found


def test_events_are_streamed_from_a_cursor_to_the_end(http: httpx.Client) -> None:
    name = create(http, upload(http, "tuning-data", "train.jsonl", training_rows()))
    path = f"/v1/{name}/events"
    first = read_events(http, path, most=2)
    rest = read_events(http, path, **{"Last-Event-ID": first[-1]["id"]})
    kinds = [event["event"] for event in (*first, *rest)]
    assert kinds[0] == "created" and kinds[-2:] == ["succeeded", "end"] and kinds.count("started") == 1
    assert rest[-1]["data"] == {"state": "JOB_STATE_SUCCEEDED"}
    numbers = [int(event["id"]) for event in (*first, *rest)]
    assert numbers[:-1] == sorted(set(numbers))
    listed = http.get(path).json()["events"]
    assert [event["data"] for event in (*first, *rest[:-1])] == listed
    again = http.get(path, headers={"Accept": "text/event-stream", "Last-Event-ID": rest[-1]["id"]})
    assert again.status_code == 204
    bad = http.get(path, headers={"Accept": "text/event-stream", "Last-Event-ID": "x"})
    assert bad.status_code == 400
    with http.stream("GET", path, headers={"Accept": "text/event-stream"}, params={"withJob": "true"}) as answer:
        whole = [line for line in answer.iter_lines() if line.startswith("event: ")]
    assert whole.count("event: job") == 1 and whole[-1] == "event: end"
    missing = http.get(f"/v1/{PARENT}/tuningJobs/1/events", headers={"Accept": "text/event-stream"})
    assert missing.status_code == 404


def test_webhooks_are_told_signed_and_again_until_they_answer(open_service: Service, receiver: Receiver) -> None:
    with open_service.http() as http:
        made = http.post(f"/v1/{PARENT}/webhooks", json={"uri": receiver.uri, "displayName": "pipeline"}).json()
        listed = http.get(f"/v1/{PARENT}/webhooks").json()["webhooks"]
        assert [one["name"] for one in listed] == [made["name"]] and "secret" not in listed[0]
        job = create(http, upload(http, "tuning-data", "train.jsonl", training_rows()))
        wait_for(lambda: len(receiver.calls) >= 3)
        ids = [headers["webhook-id"] for headers, _ in receiver.calls]
        assert ids.count(ids[0]) == 2 and len(set(ids)) == 2
        told = {}
        for headers, body in receiver.calls:
            key = base64.b64decode(made["secret"].removeprefix("whsec_"))
            signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
            expected = base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
            assert headers["webhook-signature"] == f"v1,{expected}"
            message = json.loads(body)
            assert message["data"]["name"] == job
            told[headers["webhook-id"]] = message["type"]
        assert set(told.values()) == {"tuning_job.running", "tuning_job.succeeded"}

        def delivered() -> list[dict[str, Any]] | None:
            found = http.get(f"/v1/{made['name']}/deliveries").json()["deliveries"]
            return found if all(one["state"] == "DELIVERED" for one in found) else None

        found = wait_for(delivered)
        assert sorted(one["attempts"] for one in found) == [1, 2] and {one["outcome"] for one in found} == {"HTTP 200"}
        assert http.delete(f"/v1/{made['name']}").status_code == 200
        assert http.get(f"/v1/{made['name']}").status_code == 404


@pytest.mark.parametrize(
    "uri",
    [
        "http://example.com/", "https://127.0.0.1/", "https://10.1.2.3/", "https://[::1]/", "https://169.254.169.254/",
        "https://[::ffff:127.0.0.1]/", "https://[64:ff9b::7f00:1]/", "https://user@8.8.8.8/", "ftp://8.8.8.8/", "x",
        "https://localhost/", "https://0.0.0.0/", "https://8.8.8.8/\x00",
    ],
)  # fmt: skip
def test_a_webhook_leads_to_no_private_address(http: httpx.Client, uri: str) -> None:
    answer = http.post(f"/v1/{PARENT}/webhooks", json={"uri": uri})
    assert answer.status_code == 400, answer.text
