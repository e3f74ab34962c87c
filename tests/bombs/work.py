"""Bombs that make the service work: what it computes, keeps or sends because of them takes time, memory or a turn."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from tests.bombs.site import Site

ALPHA = "/v1/projects/alpha/locations/us-central1"
GEMINI = "publishers/google/models/gemini-2.0-flash-001"
PAIRS = [left + right for left in "abcde" for right in "abcde"]
LONG_ROWS = 60 << 20


def datasets() -> dict[str, bytes]:
    """Hostile JSONL by name: a line of 60 MB, deep lines, lines of many values, very many rows, and no JSON."""
    row = json.dumps({"request": {"contents": [{"role": "user", "parts": [{"text": "a"}]}]}})
    words = json.dumps({"contents": [{"role": "user", "parts": [{"text": "b c " * 2000}]}] * 40})
    return {
        "long.jsonl": b'{"request":{"contents":[{"role":"user","parts":[{"text":"' + b"a" * LONG_ROWS + b'"}]}]}}\n',
        "deep.jsonl": (b'{"contents":' + b"[" * 50_000 + b"\n") * 50,
        "wide.jsonl": (b'{"contents":[' + b"1," * 100_000 + b"1]}\n") * 20,
        "many.jsonl": (row + "\n").encode() * 20_000,
        "words.jsonl": (words + "\n").encode() * 50,
        "none.jsonl": b"\x00\xff" * 2_000_000,
    }


async def together(site: Site, count: int, path: str, body: Any, *, leave: float | None = None) -> list[int]:
    """As many requests of one caller at once; with `leave` each hangs up after so many seconds."""
    data = json.dumps(body).encode()

    async def one() -> int:
        asking = site.ask("user", "POST", f"{ALPHA}{path}", data)
        if leave is None:
            return await asking
        try:
            return await asyncio.wait_for(asking, leave)
        except TimeoutError:
            return 0

    return await asyncio.gather(*(one() for _ in range(count)))


def prompt(text: str, **config: Any) -> dict[str, Any]:
    return {"contents": [{"role": "user", "parts": [{"text": text}]}], "generationConfig": config}


async def patterns(site: Site) -> list[int]:
    """Schemas of 19 patterns at once, each of which doubles the grammar."""
    schema = {"allOf": [{"type": "string", "pattern": f".*{pair}.*"} for pair in PAIRS[:19]]}
    body = prompt("a", responseMimeType="application/json", responseJsonSchema=schema)
    return await together(site, 2, f"/{GEMINI}:generateContent", body)


async def long_texts(site: Site) -> list[int]:
    """21 million characters, to count and to continue."""
    body = prompt("a, b " * 4_200_000)
    del body["generationConfig"]
    return [
        *await together(site, 2, f"/{GEMINI}:countTokens", body),
        *await together(site, 2, f"/{GEMINI}:generateContent", body),
    ]


async def rouge(site: Site) -> list[int]:
    """Texts of 12,000 lines to compare line by line, by callers that hang up."""
    lines = "a\n" * 12_000
    instances = [{"prediction": lines, "reference": lines}]
    body = {"rougeInput": {"metricSpec": {"rougeType": "rougeLsum", "splitSummaries": True}, "instances": instances}}
    return await together(site, 7, ":evaluateInstances", body, leave=1.0)


async def metrics(site: Site) -> list[int]:
    """Judged metrics whose templates are long, and are all to be planned."""
    template = "{prompt} {response} {" * 20_000
    metric = {"pointwiseMetricSpec": {"metricPromptTemplate": template}}
    body = {"metrics": [metric] * 50, "instance": {"prompt": {"text": "a"}, "response": {"text": "b"}}}
    return await together(site, 4, ":evaluateInstances", body)


async def slow_judges(site: Site) -> list[int]:
    """Questions to a judge that drips, by callers that hang up."""
    body = {
        "pointwiseMetricInput": {
            "metricSpec": {"metricPromptTemplate": "Rate {response}"},
            "instance": {"jsonInstance": '{"response": "a"}'},
        },
        "autoraterConfig": {"autoraterModel": "outside/slow", "samplingCount": 1},
    }
    return await together(site, 60, ":evaluateInstances", body, leave=2.0)


async def rewards(site: Site) -> list[int]:
    """Code that never ends or takes all memory, and expressions that match everywhere, by callers that hang up."""
    loop = {"codeExecutionRewardScorer": {"pythonCodeSnippet": "def evaluate(e, r):\n  while True: pass"}}
    greedy = {
        "codeExecutionRewardScorer": {"pythonCodeSnippet": "evaluate = [bytearray(1 << 20) for _ in range(1 << 20)]"}
    }
    parse = {"parseType": "REGEX_EXTRACT", "regexExtractExpression": "(x|xx)*y|x"}
    match = {"matchOperation": "REGEX_CONTAINS", "expression": "(a|b)*a(a|b){300}c"}
    slow = {"stringMatchRewardScorer": {"correctAnswerReward": 1, "stringMatchExpression": match}}
    asked = []
    for part in (loop, greedy, slow | {"parseResponseConfig": parse}, slow):
        parts = [{"rewardConfig": part | {"rewardName": f"r{index}"}, "weight": 1} for index in range(16)]
        body = {
            "compositeRewardConfig": {"weightedRewardConfigs": parts},
            "example": prompt("a") | {"generationConfig": None},
            "sampleResponse": {"parts": [{"text": "x" * 200_000}]},
        }
        asked.append(together(site, 8, "/tuningJobs:validateReinforcementTuningReward", body, leave=4.0))
    return [status for statuses in await asyncio.gather(*asked) for status in statuses]


async def many_requests(site: Site) -> list[int]:
    """300 requests to continue a text, of one caller, none of which wants its end."""
    return await together(site, 300, f"/{GEMINI}:generateContent", prompt("a", maxOutputTokens=200), leave=4.0)


async def checks(site: Site) -> list[int]:
    """Every hostile dataset to be checked, evaluated and tuned on, and some many times."""
    asked = []
    for name in datasets():
        check = {"baseModel": "gemini-2.0-flash-001", "trainingDatasetUri": f"gs://alpha-data/{name}"}
        asked.append(together(site, 6, ":checkDataset", check, leave=5.0))
        tuning = {
            "baseModel": check["baseModel"],
            "supervisedTuningSpec": {"trainingDatasetUri": f"gs://alpha-data/{name}"},
        }
        asked.append(together(site, 2, "/tuningJobs", tuning))
        dataset = {"gcsSource": {"uris": [f"gs://alpha-data/{name}"]}}
        output = {"gcsDestination": {"outputUriPrefix": "gs://alpha-data/out"}}
        body = {"dataset": dataset, "metrics": [{"exactMatchSpec": {}}], "outputConfig": output}
        asked.append(together(site, 2, ":evaluateDataset", body))
    return [status for statuses in await asyncio.gather(*asked) for status in statuses]


async def batches(site: Site) -> list[int]:
    """Batch predictions of one object a hundred times, of 20,000 rows, and of a row of 60 MB."""
    found = []
    for uris in (["gs://alpha-data/many.jsonl"] * 100, ["gs://alpha-data/many.jsonl"], ["gs://alpha-data/long.jsonl"]):
        body = {
            "displayName": "b",
            "model": GEMINI,
            "inputConfig": {"instancesFormat": "jsonl", "gcsSource": {"uris": uris}},
            "outputConfig": {
                "predictionsFormat": "jsonl",
                "gcsDestination": {"outputUriPrefix": "gs://alpha-data/out"},
            },
        }
        found += await together(site, 3, "/batchPredictionJobs", body)
    return found


async def upload_sessions(site: Site) -> list[int]:
    """200 uploads that are begun, of one caller, and ranges that lie anywhere."""
    path = "/upload/storage/v1/b/alpha-data/o?uploadType=resumable&name=u"
    asked = [site.ask("user", "POST", f"{path}{number}", b"{}") for number in range(200)]
    asked += [
        site.ask("user", "PUT", f"{path}&upload_id={identifier}", b"a" * 1000)
        for identifier in ("x", "." * 3000, "..%2F..%2Fsarto.db", "%00")
    ]
    return await asyncio.gather(*asked)
