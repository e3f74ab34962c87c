"""Our JSON responses against Starlette's `Response` behind its `GZipMiddleware`, in turn on the same bodies.

Prints processor time per response in microseconds and the ratio, for a body as of a get, of a list of 20, and of an
answer of a model, each with a client that accepts gzip and one that does not.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from typing import Any

import orjson
from starlette.middleware.gzip import GZipMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp, Message

from processor import show_processor
from sarto.api.http.responses import Reply

JOB = {
    "name": "projects/487126953/locations/us-central1/tuningJobs/7146893253186",
    "state": "JOB_STATE_SUCCEEDED",
    "baseModel": "gemini-2.0-flash-001",
    "createTime": "2026-11-30T09:26:08.581642Z",
    "supervisedTuningSpec": {
        "trainingDatasetUri": "gs://tickets/train.jsonl",
        "hyperParameters": {"epochCount": "2", "learningRateMultiplier": 1.0, "adapterSize": "ADAPTER_SIZE_SIXTEEN"},
    },
    "tunedModel": {"model": "projects/487126953/locations/us-central1/models/5@1", "checkpoints": [{"step": "40"}] * 4},
    "labels": {"team": "load"},
}
BODIES: dict[str, Any] = {
    "get": JOB,
    "list of 20": {"tuningJobs": [JOB | {"createTime": f"2026-11-30T09:{n:02}:08.5Z"} for n in range(20)]},
    "an answer": {"candidates": [{"content": {"role": "model", "parts": [{"text": "Reset it in settings. " * 12}]}}]},
}


def starlette(body: bytes) -> ASGIApp:
    return GZipMiddleware(Response(body, media_type="application/json"), minimum_size=32, compresslevel=1)


async def microseconds(make: Any, body: bytes, accepted: bytes, count: int) -> float:
    """Processor time of one response."""
    scope = {"type": "http", "method": "GET", "path": "/", "headers": [(b"accept-encoding", accepted)]}

    async def receive() -> Message:
        return {"type": "http.request"}

    async def send(_: Message) -> None:
        return None

    started = time.process_time()
    for _ in range(count):
        await make(body)(scope, receive, send)
    return (time.process_time() - started) / count * 1e6


async def measure(rounds: int, count: int) -> None:
    print(f"{'body':<14}{'bytes':>8}  {'client':<10}{'ours, µs':>10}{'Starlette, µs':>15}{'ratio':>8}")
    for name, value in BODIES.items():
        body = orjson.dumps(value)
        for accepted in (b"gzip", b"identity"):
            times: dict[Any, list[float]] = {Reply: [], starlette: []}
            for _ in range(rounds):
                for make, taken in times.items():
                    taken.append(await microseconds(make, body, accepted, count))
            ours, theirs = (statistics.median(taken) for taken in times.values())
            print(f"{name:<14}{len(body):>8}  {accepted.decode():<10}{ours:>10.1f}{theirs:>15.1f}{theirs / ours:>8.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--count", type=int, default=2_000)
    options = parser.parse_args()
    show_processor()
    asyncio.run(measure(options.rounds, options.count))


if __name__ == "__main__":
    main()
