"""Google's own Go libraries, where Go and Debian's package of them are: sign-in by key file, tuning, storage, keys."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from .conftest import Dataset
from .service import Service

PROGRAM = Path(__file__).parent / "go" / "flow.go"
LIBRARIES = Path("/usr/share/gocode")

if shutil.which("go") is None or not (LIBRARIES / "src" / "google.golang.org" / "api").exists():
    pytest.skip("go, or its Google libraries (golang-google-api-dev), are not installed", allow_module_level=True)


@pytest.fixture(scope="module")
def seen(service: Service, dataset: Dataset, tuned: dict[str, Any]) -> dict[str, tuple[int, str]]:
    given = [service.address, str(service.key_file), dataset.training, tuned["tunedModel"]["endpoint"], tuned["name"]]
    environ = os.environ | {"GO111MODULE": "off", "GOPATH": str(LIBRARIES), "GOFLAGS": "", "GOPROXY": "off"}
    command = ["go", "run", str(PROGRAM), *given]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    return {row["call"]: (row["status"], row["body"]) for row in rows}


def test_tune_get_list_and_cancel(seen: dict[str, tuple[int, str]], tuned: dict[str, Any]) -> None:
    made = json.loads(seen["create"][1])
    assert made["state"] == "JOB_STATE_PENDING" and made["tunedModelDisplayName"] == "from Go"
    assert seen["cancel"] == (200, "{}")
    assert json.loads(seen["get"][1]) == tuned
    assert len(json.loads(seen["list"][1])["tuningJobs"]) == 1


def test_generation_unary_and_streamed_agree(seen: dict[str, tuple[int, str]]) -> None:
    pieces = [json.loads(line.removeprefix("data: ")) for line in seen["stream"][1].splitlines() if line]
    assert "".join(map(_text, pieces)) == _text(json.loads(seen["generate"][1]))


def test_errors_carry_status_and_message(seen: dict[str, tuple[int, str]]) -> None:
    status, body = seen["refused"]
    assert (status, json.loads(body)["error"]["status"]) == (400, "INVALID_ARGUMENT")


def test_the_clients_of_projects_accounts_tokens_and_keys(seen: dict[str, tuple[int, str]], service: Service) -> None:
    assert json.loads(seen["project"][1])["projectId"] == "demo"
    assert service.key["client_email"] in [one["email"] for one in json.loads(seen["accounts"][1])["accounts"]]
    assert json.loads(seen["token"][1])["accessToken"]
    assert json.loads(seen["key"][1])["name"].endswith("/keyRings/from-go/cryptoKeys/k")


def test_the_client_of_storage(seen: dict[str, tuple[int, str]]) -> None:
    assert json.loads(seen["object"][1])["size"] == "13"
    assert json.loads(seen["content"][1]) == "written by Go"


def _text(answer: dict[str, Any]) -> str:
    return "".join(part["text"] for part in answer["candidates"][0].get("content", {}).get("parts", []))
