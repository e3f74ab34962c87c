"""validateReinforcementTuningReward through google-genai 2.x and 3.x, @google/genai, REST, and the command line."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from sarto.system.sandbox import computing_faults
from tests.judge_server import KEY, judge_server

from .conftest import PARENT
from .service import Service

pytestmark = pytest.mark.skipif(bool(computing_faults()), reason="user code needs Landlock and seccomp")
HERE = Path(__file__).parent
NEWEST = HERE.parents[1] / ".venv-genai3" / "bin" / "python"
METHOD = f"/v1beta1/{PARENT}/tuningJobs:validateReinforcementTuningReward"


class Scoring(BaseHTTPRequestHandler):
    """A reward URL: it answers half a point, and repeats what it was sent."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        reward = {"/nan": "NaN", "/text": "high"}.get(self.path, 0.5)
        self._answer(404 if self.path == "/none" else 200, {"reward": reward, "user_requested_aux_info": str(body)})

    def _answer(self, status: int, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        """It is quiet."""


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), Scoring) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.fixture(scope="module")
def scoring(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    service = Service(tmp_path_factory.mktemp("rewards") / "home")
    with judge_server() as judge:
        service.write_judges([(f"outside/{name}", "openai", f"{judge}/v1", name) for name in ("fair", "wordy")])
        service.start(JUDGE_KEY=KEY, SARTO_REWARD_PRIVATE_ADDRESSES="true", SARTO_REWARD_CODE_SECONDS="2")
        with service.http() as http:
            service.give_metadata_account(http)
        yield service
        service.stop()


@pytest.fixture(scope="module")
def client(scoring: Service) -> Iterator[httpx.Client]:
    with scoring.http() as client:
        yield client


@pytest.fixture(scope="module", params=["2.", "3."])
def seen(request: pytest.FixtureRequest, scoring: Service, url: str) -> dict[str, Any]:
    python = NEWEST if request.param == "3." else Path(sys.executable)
    assert python.exists(), "`make test` makes .venv-genai3"
    done = run([str(python), str(HERE / "reward_flow.py"), scoring.address, url], scoring)
    found: dict[str, Any] = json.loads(done.splitlines()[-1])
    assert found["version"].startswith(request.param)
    return found


def run(command: list[str], service: Service) -> str:
    environ = {k: v for k, v in os.environ.items() if not k.startswith(("GOOGLE_", "GCE_", "CLOUDSDK_"))}
    if command[0] == "node":
        environ |= {"HOME": "/nonexistent", "GCE_METADATA_HOST": f"127.0.0.1:{service.port}"}
    else:
        environ["GOOGLE_APPLICATION_CREDENTIALS"] = str(service.key_file)
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_official_client_reads_the_reward_of_every_scorer(seen: dict[str, Any]) -> None:
    assert seen["exact"] == {"overall_reward": 1.0, "reward_info_details": {"exact": {"reward": 1.0}}}
    assert seen["wrong"]["overall_reward"] == -1.0
    details = {name: one["reward"] for name, one in seen["composite"]["reward_info_details"].items()}
    assert details == {"exact": 1.0, "code": 0.42}
    assert seen["composite"]["overall_reward"] == pytest.approx((1.0 + 3 * 0.42) / 4, abs=1e-12)
    assert seen["number"]["overall_reward"] == 1.0, "3 is clipped"
    assert seen["liked"]["overall_reward"] == 0.5
    assert seen["own"]["overall_reward"] == 0.0
    asked = seen["url"]["reward_info_details"]["url"]
    assert asked["reward"] == 0.5
    assert "'step': 0" in asked["user_requested_aux_info"] and "'tuning_job_id': 0" in asked["user_requested_aux_info"]
    assert "'references': {'answer': '42'}" in asked["user_requested_aux_info"]


def test_a_failed_score_is_an_answer_and_a_wrong_config_is_none(seen: dict[str, Any]) -> None:
    broken = seen["broken"]
    assert "overall_reward" not in broken and "KeyError: 'x' (line 2)" in broken["error"]
    assert broken["reward_info_details"]["reward"]["error_status"]["code"] == 3
    assert "has no number" in seen["wordy"]["error"]
    for name, words in (
        ("unknown", "single_reward_config.autorater_scorer.autorater_config.autorater_model"),
        ("faulty", "No scorer is set"),
        ("nothing", "singleRewardConfig"),
    ):
        code, status, message = seen[name]
        assert (code, status) == (400, "INVALID_ARGUMENT") and words in message


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
def test_the_client_for_node(scoring: Service) -> None:
    found = json.loads(run(["node", str(HERE / "node" / "reward.mjs"), scoring.address], scoring).splitlines()[-1])
    assert found["right"]["overallReward"] == 0.75
    assert found["right"]["rewardInfoDetails"]["exact"]["reward"] == 0.75
    assert "code: evaluate returned NaN." in found["composite"]["error"]
    assert found["fault"]["status"] == 400 and "RE2" in found["fault"]["message"]


def ask(client: httpx.Client, config: dict[str, Any], text: str = "42", **more: Any) -> httpx.Response:
    example = {"contents": [{"role": "user", "parts": [{"text": "6 times 7?"}]}], "references": {"answer": "42"}}
    body = {"example": example, "sample_response": {"role": "model", "parts": [{"text": text}]}}
    return client.post(METHOD, json=body | {"single_reward_config": config} | more)


def code(line: str) -> dict[str, Any]:
    return {"codeExecutionRewardScorer": {"python_code_snippet": f"import os\ndef evaluate(e, r):\n  {line}"}}


def test_user_code_in_the_service_is_confined_and_stopped(client: httpx.Client, scoring: Service) -> None:
    for line, words in (
        ("while True: pass", "2 seconds"),
        ("return len(os.listdir('/tmp'))", "PermissionError"),
        ("os.fork()", "PermissionError"),
        (f"return open('{scoring.key_file}').read()", "PermissionError"),
        (f"os.kill({scoring.pid}, 9)", "PermissionError"),
        ("return bytearray(2 << 30)", "more memory"),
    ):
        answer = ask(client, code(line))
        assert answer.status_code == 200 and words in answer.json()["error"], answer.text
    assert ask(client, code("return os.environ.get('JUDGE_KEY') is None")).json()["overallReward"] == 1.0


def test_two_calls_share_no_variables(client: httpx.Client) -> None:
    snippet = "seen = []\ndef evaluate(e, r):\n  seen.append(1)\n  return len(seen) / 2"
    config = {"codeExecutionRewardScorer": {"pythonCodeSnippet": snippet}}
    assert [ask(client, config).json()["overallReward"] for _ in range(2)] == [0.5, 0.5]


def test_a_url_that_gives_no_number(client: httpx.Client, url: str) -> None:
    def error(uri: str) -> str:
        answer = ask(client, {"cloudRunRewardScorer": {"cloudRunUri": uri}})
        return str(answer.json().get("error", {}))

    assert "NaN" in error(f"{url}/nan")
    assert 'a number "reward"' in error(f"{url}/text")
    assert "HTTP 404" in error(f"{url}/none")
    assert "cloud_run_uri" in error("ftp://x/y")


def test_the_example_must_have_the_references(client: httpx.Client) -> None:
    scorer = {"correctAnswerReward": 1, "stringMatchExpression": {"matchOperation": "EXACT_MATCH"}}
    scorer["stringMatchExpression"]["expression"] = "{{references.other}}"  # type: ignore[index]
    answer = ask(client, {"stringMatchRewardScorer": scorer})
    assert answer.status_code == 400 and 'no reference "other"' in answer.json()["error"]["message"]


def test_private_addresses_are_not_called_unless_a_setting_allows_them(http: httpx.Client, url: str) -> None:
    for uri in (url, "https://127.0.0.1:8443/x", "https://10.0.0.1/x"):
        answer = ask(http, {"cloudRunRewardScorer": {"cloudRunUri": uri}}, example=None)
        assert answer.status_code == 400
    config = {"cloudRunRewardScorer": {"cloudRunUri": url}}
    assert "https URL" in ask(http, config).json()["error"]["message"]


def test_the_command_line(scoring: Service, tmp_path: Path) -> None:
    (tmp_path / "reward.json").write_text(json.dumps(code("return 0.25")))
    (tmp_path / "row.jsonl").write_text(json.dumps({"contents": [{"parts": [{"text": "?"}]}]}) + "\n")
    sarto = [str(Path(sys.executable).with_name("sarto")), "--url", scoring.address, "reward", "try"]
    options = ["--config", str(tmp_path / "reward.json"), "--example", str(tmp_path / "row.jsonl"), "--response", "x"]
    assert "0.25" in run([*sarto, *options], scoring)
    assert json.loads(run([*sarto, *options, "--json"], scoring))["overallReward"] == 0.25
