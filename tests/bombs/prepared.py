"""What the bombs fall on: a service with three projects, their callers and their data."""

from __future__ import annotations

import json
import time
from pathlib import Path

from sarto.control import operations
from sarto.control.access import projects
from sarto.names import LocationName
from sarto.storage.database.database import Database
from tests.bombs import own_base
from tests.bombs.site import CALLERS, Site
from tests.bombs.work import ALPHA, datasets
from tests.conformance.service import Service, training_rows, upload

CONTENTS = [{"role": "user", "parts": [{"text": "a"}]}]
PROJECTS = {
    "alpha": {"viewer": "roles/aiplatform.viewer", "user": "roles/aiplatform.user"},
    "victim": {"victim": "roles/owner"},
    "gamma": {"owner elsewhere": "roles/owner"},
}


def email(name: str) -> str:
    return f"{name.replace(' ', '-')}@example.com"


def prepare(service: Service, drip: str) -> Site:
    """Projects, callers, hostile datasets, a job that waits for its turn for ever, and an operation that nobody ends;
    the judge and the webhook of `alpha` are at the address `drip`."""
    service.write_judges([("outside/fair", "openai", drip, "m"), ("outside/slow", "openai", drip, "m")])
    service.start(JUDGE_KEY="k")
    with service.http() as http:
        for project, roles in PROJECTS.items():
            http.post("/v3/projects", json={"projectId": project}).raise_for_status()
            policy = http.post(f"/v3/projects/{project}:getIamPolicy", json={}).json()
            if project == "alpha":
                policy["bindings"].append({"role": "roles/storage.admin", "members": [f"user:{email('user')}"]})
            policy["bindings"] += [{"role": role, "members": [f"user:{email(name)}"]} for name, role in roles.items()]
            http.post(f"/v3/projects/{project}:setIamPolicy", json={"policy": policy}).raise_for_status()
        http.post("/storage/v1/b", params={"project": "alpha"}, json={"name": "alpha-data"}).raise_for_status()
        uri = upload(http, "alpha-data", "train.jsonl", training_rows())
        for name, content in datasets().items():
            upload(http, "alpha-data", name, content)
        http.post("/storage/v1/b", params={"project": "victim"}, json={"name": "victim-data"}).raise_for_status()
        upload(http, "victim-data", "train.jsonl", training_rows())
        upload(http, "victim-data", "one.jsonl", json.dumps({"request": {"contents": CONTENTS}}).encode() + b"\n")
        tuned = own_base.tune(http, ALPHA.removeprefix("/v1/"), "alpha-data", uri)["tunedModel"]
        for project in ("alpha", "victim"):
            http.patch(f"/v3/projects/{project}/quota", json={"concurrentJobs": 0}).raise_for_status()
        for name in ("a" * 64, "b" * 64):
            http.post(f"{ALPHA}/endpoints", json={"displayName": name}).raise_for_status()
    service.stop()
    operation = unfinished(service.home)
    options = {"SARTO_CONNECTIONS_PER_ADDRESS": "0", "SARTO_WEBHOOK_PRIVATE_ADDRESSES": "true", "JUDGE_KEY": "k"}
    service.start("--grpc-port", "0", **options)
    with service.http() as http:
        body = {"baseModel": "gemini-2.0-flash-001", "supervisedTuningSpec": {"trainingDatasetUri": uri}}
        made = http.post(f"{ALPHA}/tuningJobs", json=body)
        assert made.status_code == 200, made.text
        http.post(f"{ALPHA}/webhooks", json={"uri": f"{drip}/hook"}).raise_for_status()
        for _ in range(20):
            ended = http.post(f"{ALPHA}/tuningJobs", json=body).json()["name"]
            http.post(f"/v1/{ended}:cancel", json={}).raise_for_status()
    tokens = {name: service.user_token(email(name)) for name in [*filter(None, CALLERS), "victim"]}
    return Site(
        int(service.port),
        tokens,
        job="/v1/" + made.json()["name"],
        operation=f"/v1/{operation}",
        endpoint="/v1/" + tuned["endpoint"],
        model="/v1/" + tuned["model"],
        grpc_port=int((service.home / "grpc_address").read_text().rpartition(":")[2]),
        grpc_authority=(service.home / "tls" / "ca.pem").read_bytes(),
    )


def unfinished(home: Path) -> str:
    database = Database.in_home(home, "")
    try:
        found = projects.find(database, "alpha")
        assert found is not None
        with database.transaction() as connection:
            about = LocationName(found.number, "us-central1")
            made = operations.begin(connection, about, "", "GenericOperationMetadata", {}, time.time())
        return str(made["name"])
    finally:
        database.close()
