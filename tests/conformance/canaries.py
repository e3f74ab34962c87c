"""Words planted in accepted and refused requests at every door that takes prompts or rows, and where to look for them.

Each request has a word of its own, so that one which is found says by which door it came."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import sqlalchemy as sa

from .conftest import PARENT
from .service import Service, training_rows, upload, wait_for

MODEL = "publishers/google/models/gemini-2.0-flash-001"
BUCKET = "canary-rows"
OUTPUT = {"gcsDestination": {"outputUriPrefix": f"gs://{BUCKET}/out"}}
SHORT = {"maxOutputTokens": 2}
BIDS = ("JOB_STATE_SUCCEEDED", "JOB_STATE_FAILED")


@dataclass
class Planted:
    """The words by the door and what became of the request, and what was answered."""

    words: dict[str, str] = field(default_factory=dict)
    statuses: dict[str, int] = field(default_factory=dict)

    def word(self, door: str) -> str:
        return self.words.setdefault(door, f"canary{secrets.token_hex(6)}")

    def found_in(self, text: str) -> list[str]:
        return [door for door, word in self.words.items() if word in text]


def said(text: str, **more: Any) -> dict[str, Any]:
    return {"contents": [{"role": "user", "parts": [{"text": text}]}], **more}


def requests(planted: Planted) -> Iterator[tuple[str, str, Any]]:
    """(door, path, body) over HTTP; a door whose name begins with `bad` is refused."""
    word, place = planted.word, f"/v1/{PARENT}/{MODEL}"
    for verb in ("generateContent", "streamGenerateContent", "countTokens", "computeTokens"):
        config = {"generationConfig": SHORT} if "Content" in verb else {}
        yield verb, f"{place}:{verb}", said(word(verb), **config)
        yield (
            f"bad {verb}: a field",
            f"{place}:{verb}",
            said(word(f"bad {verb}: a field"), **{word(f"bad {verb}: a field"): 1}),
        )
        wrong = word(f"bad {verb}: a role")
        yield f"bad {verb}: a role", f"{place}:{verb}", {"contents": [{"role": wrong, "parts": [{"text": wrong}]}]}
    tool = {"functionDeclarations": [{"name": word("tool") + " !", "description": word("tool")}]}
    yield "tool", f"{place}:generateContent", said(word("tool"), tools=[tool])
    schema = {"responseMimeType": "application/json", "responseSchema": {"type": word("bad schema")}}
    yield "bad schema", f"{place}:generateContent", said(word("bad schema"), generationConfig=schema)
    no_such = f"/v1/{PARENT}/publishers/google/models/{word('bad model')}:generateContent"
    yield "bad model", no_such, said(word("bad model"))
    chat = f"/v1/{PARENT}/endpoints/openapi/chat/completions"
    for door, more in {
        "chat": {"max_tokens": 2},
        "chat stream": {"max_tokens": 2, "stream": True},
        "bad chat: n": {"n": "CANARY"},
        "bad chat: tools": {"tools": [{"type": "function", "function": {"name": "CANARY !"}}]},
        "bad chat: format": {
            "response_format": {"type": "json_schema", "json_schema": {"name": "CANARY", "schema": 7}}
        },
    }.items():
        message = {"role": "user", "content": word(door)}
        extra = json.loads(json.dumps(more).replace("CANARY", word(door)))
        yield door, chat, {"model": "google/gemini-2.0-flash-001", "messages": [message], **extra}
    translate = f"/v3/{PARENT}:translateText"
    languages = {"sourceLanguageCode": "en", "targetLanguageCode": "de"}
    yield "translate", translate, {"contents": [word("translate")], **languages}
    yield (
        "bad translate",
        translate,
        {"contents": [word("bad translate")], "targetLanguageCode": word("bad translate")[:9]},
    )
    pair = {"prediction": word("instances"), "reference": word("instances")}
    yield "instances", f"/v1/{PARENT}:evaluateInstances", {"exactMatchInput": {"metricSpec": {}, "instances": [pair]}}
    judged = {"metricSpec": {"metricPromptTemplate": "{" + word("bad instances") + "}"}}
    judged |= {"instance": {"jsonInstance": json.dumps({"prompt": word("bad instances")})}}
    yield "bad instances", f"/v1/{PARENT}:evaluateInstances", {"pointwiseMetricInput": judged}


def rows(planted: Planted, http: httpx.Client) -> Iterator[tuple[str, str, Any]]:
    """The same by datasets: what is made of good rows and of bad ones."""

    def stored(door: str, row: dict[str, Any], before: bytes = b"") -> str:
        return upload(
            http, BUCKET, f"{planted.word(door)[:4]}{len(planted.words)}.jsonl", before + json.dumps(row).encode()
        )

    def turn(role: str, text: str) -> dict[str, Any]:
        return {"role": role, "parts": [{"text": text}]}

    for door, base in (("bad tuning", "gemini-2.0-flash-001"), ("bad translation tuning", "translation-llm-002")):
        word = planted.word(door)
        uri = stored(door, {"contents": [turn(word, word)], word: word})
        yield door, f"/v1/{PARENT}/tuningJobs", {"baseModel": base, "supervisedTuningSpec": {"trainingDatasetUri": uri}}
        data = {"baseModel": base, "trainingDatasetUri": uri}
        yield f"{door}: checkDataset", f"/v1/{PARENT}:checkDataset", data
    word = planted.word("tuning")
    good = {"contents": [turn("user", word), turn("model", word)]}
    uri = stored("tuning", good, training_rows())
    spec = {"trainingDatasetUri": uri, "hyperParameters": {"epochCount": 1}}
    yield "tuning", f"/v1/{PARENT}/tuningJobs", {"baseModel": "gemini-2.0-flash-001", "supervisedTuningSpec": spec}
    for door, row in (
        ("batch", {"request": said(planted.word("batch"), generationConfig=SHORT)}),
        ("batch of bad rows", {"request": {"contents": planted.word("batch of bad rows")}}),
    ):
        uri = stored(door, row)
        yield door, f"/v1/{PARENT}/batchPredictionJobs", {
            "displayName": "b", "model": MODEL,
            "inputConfig": {"instancesFormat": "jsonl", "gcsSource": {"uris": [uri]}},
            "outputConfig": {"predictionsFormat": "jsonl", **OUTPUT},
        }  # fmt: skip
    for door, row in (
        ("evaluation", {"response": planted.word("evaluation"), "reference": planted.word("evaluation")}),
        ("evaluation of bad rows", {planted.word("evaluation of bad rows"): planted.word("evaluation of bad rows")}),
    ):
        yield door, f"/v1/{PARENT}:evaluateDataset", {
            "dataset": {"gcsSource": {"uris": [stored(door, row)]}}, "metrics": [{"exactMatchSpec": {}}],
            "outputConfig": OUTPUT,
        }  # fmt: skip


def plant(service: Service, planted: Planted) -> list[str]:
    """Ask at every door, and wait for the work to end; gives the names of what was made."""
    made = []
    with service.http() as http:
        http.post("/storage/v1/b", params={"project": "demo"}, json={"name": BUCKET}).raise_for_status()
        for door, path, body in [*requests(planted), *rows(planted, http)]:
            answer = http.post(path, json=body)
            planted.statuses[door] = answer.status_code
            if door in ("tuning", "batch", "batch of bad rows", "evaluation", "evaluation of bad rows"):
                assert answer.status_code == 200, (door, answer.text)
                made.append(answer.json()["name"])

        def has_ended(name: str) -> bool:
            found = http.get(f"/v1/{name}").json()
            return bool(found.get("done")) or found.get("state") in BIDS

        wait_for(lambda: all(map(has_ended, made)), 120)
    return made


def shown_to_others(service: Service, made: list[str]) -> dict[str, str]:
    """What somebody of the project who may see its jobs but not its buckets is answered, and a stranger."""
    email = "onlooker@example.com"
    with service.http() as http:
        policy = http.post("/v3/projects/demo:getIamPolicy", json={}).json()
        for role in ("roles/aiplatform.user", "roles/logging.viewer"):
            policy["bindings"].append({"role": role, "members": [f"user:{email}"]})
        http.post("/v3/projects/demo:setIamPolicy", json={"policy": policy}).raise_for_status()
    found = {}
    for who in (email, "stranger@example.com"):
        headers = {"Authorization": f"Bearer {service.user_token(who)}"}
        with httpx.Client(base_url=service.address, timeout=60, headers=headers) as http:
            lists = ("tuningJobs", "batchPredictionJobs", "operations", "models", "endpoints", "contexts")
            for path in [*made, *(f"{name}/events" for name in made), *(f"{PARENT}/{each}" for each in lists)]:
                found[f"{who} {path}"] = http.get(f"/v1/{path}").text
            body = {"resourceNames": ["projects/demo"], "pageSize": 1000}
            found[f"{who} entries"] = http.post("/v2/entries:list", json=body).text
            bad = http.post(f"/v1/{PARENT}/{MODEL}:generateContent", json={"contents": 7})
            found[f"{who} error"] = bad.text
            found[f"{who} metrics"] = http.get("/metrics").text
    assert '"entries"' in found[f"{email} entries"] and made[0] in found[f"{email} {made[0]}"]
    return found


def written(service: Service, output: str) -> dict[str, str]:
    """The log as a file and as it was printed, every other log in the home, and the audit log in the database."""
    logs = [path for path in service.home.rglob("*") if path.is_file() and (path.suffix in (".log", ".txt"))]
    found = {str(path): path.read_text(errors="replace") for path in logs} | {"output": output}
    engine = sa.create_engine(f"sqlite:///{service.home / 'sarto.db'}")
    with engine.connect() as connection:
        found["audit_entry"] = "\n".join(
            map(str, connection.exec_driver_sql("select entry from audit_entry").scalars())
        )
    engine.dispose()
    return found
