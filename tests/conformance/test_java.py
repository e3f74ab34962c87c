"""The JDK's own HTTP client with what Google's Java client sends: it offers HTTP/2 on every new connection."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from .conftest import Dataset
from .service import Service

PROGRAM = Path(__file__).parent / "java" / "Flow.java"

if shutil.which("java") is None:
    pytest.skip("java is not installed", allow_module_level=True)


@dataclass(frozen=True)
class Answer:
    status: int
    content_type: str
    body: str

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@pytest.fixture(scope="module")
def seen(service: Service, dataset: Dataset, tuned: dict[str, Any]) -> dict[str, Answer]:
    options = ["-XX:TieredStopAtLevel=1", "-Dfile.encoding=UTF-8"]
    given = [service.address, service.token(), dataset.training, tuned["tunedModel"]["endpoint"], tuned["name"]]
    command = ["java", *options, str(PROGRAM), *given]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found = {}
    for line in done.stdout.splitlines():
        call, status, content_type, body = line.split("\t")
        found[call] = Answer(int(status), content_type, base64.b64decode(body).decode())
    return found


def test_tune_get_list_and_cancel(seen: dict[str, Answer], tuned: dict[str, Any]) -> None:
    made = seen["create"].json
    assert made["state"] == "JOB_STATE_PENDING" and made["tunedModelDisplayName"] == "Grüße"
    assert (seen["cancel"].status, seen["cancel"].json) == (200, {})
    assert seen["get"].json == tuned
    assert len(seen["list"].json["tuningJobs"]) == 1 and seen["list"].json["nextPageToken"]


def test_generation_unary_and_streamed_agree(seen: dict[str, Answer]) -> None:
    whole = seen["generate"].json
    assert seen["stream"].content_type.startswith("text/event-stream")
    pieces = [json.loads(line.removeprefix("data: ")) for line in seen["stream"].body.splitlines() if line]
    assert "".join(map(_text, pieces)) == _text(whole)
    assert whole["usageMetadata"]["promptTokenCount"] == seen["count"].json["totalTokens"]


def test_errors_carry_status_and_message(seen: dict[str, Answer]) -> None:
    error = seen["refused"].json["error"]
    assert (seen["refused"].status, error["code"], error["status"]) == (400, 400, "INVALID_ARGUMENT")
    assert "no-such-model" in error["message"]


def _text(answer: dict[str, Any]) -> str:
    return "".join(part["text"] for part in answer["candidates"][0].get("content", {}).get("parts", []))
