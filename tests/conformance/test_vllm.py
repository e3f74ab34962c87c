"""A service whose base vLLM answers for (tests/vllm_server.py stands in for it): jobs, rights and restarts."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from google import genai
from google.auth.transport.requests import Request
from google.genai import types
from google.oauth2 import service_account

from tests.vllm_server import KEY, held, vllm_server

from .conftest import PARENT
from .conftest import ended as job_ended
from .service import SCOPES, Service, training_rows, upload, wait_for

ASKED = {"contents": [{"role": "user", "parts": [{"text": "q1"}]}]}
CONFIG = """
[[vllm]]
weights = "tiny"
model = "tiny"
address = "{address}"
key_variable = "VLLM_KEY"
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Service, str]]:
    service = Service(tmp_path_factory.mktemp("vllm") / "home")
    with vllm_server() as (address, _):
        (service.home / "config.toml").write_text(CONFIG.format(address=address))
        service.start(VLLM_KEY=KEY, SARTO_AUDIT_DATA_ACCESS="true")
        yield service, address
        assert service.stop() == 0


@pytest.fixture(scope="module")
def tuned(place: tuple[Service, str]) -> dict[str, Any]:
    with place[0].http() as http:
        uri = upload(http, "vllm-data", "train.jsonl", training_rows())
        spec = {"trainingDatasetUri": uri, "hyperParameters": {"epochCount": "1"}}
        job = http.post(
            f"/v1/{PARENT}/tuningJobs", json={"baseModel": "gemini-2.0-flash-001", "supervisedTuningSpec": spec}
        )
        assert job.status_code == 200, job.text
        done = job_ended(http, job.json()["name"])
        assert done["state"] == "JOB_STATE_SUCCEEDED", done
        return done


def said(answer: httpx.Response) -> str:
    assert answer.status_code == 200, answer.text
    return str(answer.json()["candidates"][0]["content"]["parts"][0]["text"])


def test_a_finished_job_is_in_vllm_and_its_endpoint_answers_from_there(
    place: tuple[Service, str], tuned: dict[str, Any]
) -> None:
    service, address = place
    (name,) = wait_for(lambda: held(address))
    with service.http() as http:
        answer = http.post(f"/v1/{tuned['tunedModel']['endpoint']}:generateContent", json=ASKED)
        assert said(answer).startswith(f"{name} read ")
        base = http.post(f"/v1/{PARENT}/publishers/google/models/gemini-2.0-flash-001:generateContent", json=ASKED)
        assert said(base).startswith("tiny read ")


def test_nobody_can_name_an_adapter_of_another_project(place: tuple[Service, str], tuned: dict[str, Any]) -> None:
    service, address = place
    (name,) = wait_for(lambda: held(address))
    with service.http() as http:
        project = {"projectId": "other-project"}
        http.post("/v3/projects", json=project).raise_for_status()
        account = http.post("/v1/projects/other-project/serviceAccounts", json={"accountId": "stranger"})
        assert account.status_code == 200, account.text
        email = account.json()["email"]
        policy = {"policy": {"bindings": [{"role": "roles/owner", "members": [f"serviceAccount:{email}"]}]}}
        http.post("/v3/projects/other-project:setIamPolicy", json=policy).raise_for_status()
        made = http.post(f"/v1/projects/other-project/serviceAccounts/{email}/keys", json={})
        assert made.status_code == 200, made.text
        key = json.loads(base64.b64decode(made.json()["privateKeyData"]))
    credentials = service_account.Credentials.from_service_account_info(key, scopes=SCOPES)
    credentials.refresh(Request())
    headers = {"Authorization": f"Bearer {credentials.token}"}
    with httpx.Client(base_url=service.address, headers=headers, timeout=60) as stranger:
        endpoint = tuned["tunedModel"]["endpoint"]
        assert stranger.post(f"/v1/{endpoint}:generateContent", json=ASKED).status_code == 403
        chat = {"model": name, "messages": [{"role": "user", "content": "q1"}]}
        assert stranger.post("/openai/v1/chat/completions", json=chat).status_code == 404
        chat["model"] = endpoint
        assert stranger.post("/openai/v1/chat/completions", json=chat).status_code == 403


def test_the_audit_log_has_generate_calls_of_the_official_clients_and_not_their_words(
    place: tuple[Service, str], tuned: dict[str, Any]
) -> None:
    service, _ = place
    endpoint, words = tuned["tunedModel"]["endpoint"], "a sentence for nobody else"
    options = types.HttpOptions(base_url=service.address)
    with genai.Client(
        vertexai=True, project="demo", location="us-central1", credentials=service.credentials(), http_options=options
    ) as client:
        assert client.models.generate_content(model=endpoint, contents=words).text
        assert list(client.models.generate_content_stream(model=endpoint, contents=words))
    with openai.OpenAI(base_url=f"{service.address}/openai/v1", api_key=service.token()) as other:
        assert other.chat.completions.create(model=endpoint, messages=[{"role": "user", "content": words}]).choices
    with service.http() as http:

        def logged() -> Any:
            answer = http.post("/v2/entries:list", json={"resourceNames": ["projects/demo"], "pageSize": 1000})
            rows = [row["protoPayload"] for row in answer.json().get("entries", [])]
            calls = [row for row in rows if row["methodName"].endswith("PredictionService.GenerateContent")]
            return (calls, answer.text) if len([row for row in calls if row["resourceName"] == endpoint]) >= 3 else None

        calls, text = wait_for(logged)
    who = service.credentials().service_account_email
    assert all(row["authenticationInfo"]["principalEmail"] == who for row in calls if not row.get("status"))
    assert words not in text


def test_both_may_restart_and_a_deleted_model_leaves_vllm(place: tuple[Service, str], tuned: dict[str, Any]) -> None:
    service, address = place
    names = wait_for(lambda: held(address))
    service.kill()
    (service.home / "address").unlink()
    headers = {"Authorization": f"Bearer {KEY}"}
    for name in names:
        httpx.post(f"{address}/v1/unload_lora_adapter", json={"lora_name": name}, headers=headers).raise_for_status()
    service.start(VLLM_KEY=KEY)
    assert wait_for(lambda: held(address)) == names
    with service.http() as http:
        endpoint, model = tuned["tunedModel"]["endpoint"], tuned["tunedModel"]["model"].partition("@")[0]
        deployed = http.get(f"/v1/{endpoint}").json()["deployedModels"][0]["id"]
        http.post(f"/v1/{endpoint}:undeployModel", json={"deployedModelId": deployed}).raise_for_status()
        http.delete(f"/v1/{endpoint}").raise_for_status()
        http.delete(f"/v1/{model}").raise_for_status()
        wait_for(lambda: not held(address))
