"""Requests per second of one `sarto serve` process on SQLite, authentication and validation on, by size of database.

`python benchmarks/api_load.py` fills homes with 10 thousand and 1 million ended jobs by SQL, then asks over keep-alive
connections from a process of its own: get, list of 20 (first page, a page half-way down, and one near the end), create.
Prints a Markdown table: requests/s, median and 99th percentile in ms, CPU microseconds of the server per request.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvloop

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.conformance.service import Service, training_rows, upload

from processor import show_processor
from sarto.control.aip import pages

LOCATION = "us-central1"
JOBS = f"/v1/projects/demo/locations/{LOCATION}/tuningJobs"
STEP = 1_000_003
"""Between one filled id and the next: ids are times, and no two jobs are made in the same instant."""
TARGETS = {"get": 3000, "list of 20": 1500, "create": 1500}


@dataclass(frozen=True)
class Measured:
    per_second: float
    median: float
    p99: float
    cpu: float
    """Server CPU microseconds per request."""


class _Connection(asyncio.Protocol):
    """Asks, reads the whole answer, asks again."""

    def __init__(self, ask: Callable[[], bytes], latencies: list[float]) -> None:
        self.ask, self.latencies = ask, latencies
        self.buffer = b""
        self.fault = b""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self._send()

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        end = self.buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        head = self.buffer[:end].lower()
        length = int(head.partition(b"content-length:")[2].split(b"\r\n", 1)[0])
        if len(self.buffer) < end + 4 + length:
            return
        if not head.startswith(b"http/1.1 200"):
            self.fault = self.buffer
            self.transport.close()
            return
        self.buffer = b""
        self.latencies.append(time.perf_counter() - self.sent)
        self._send()

    def _send(self) -> None:
        self.sent = time.perf_counter()
        self.transport.write(self.ask())


async def load(port: int, ask: Callable[[], bytes], connections: int, seconds: float) -> list[float]:
    """Latencies of every request answered within `seconds`. Raises RuntimeError at an answer other than 200."""
    loop = asyncio.get_running_loop()
    latencies: list[float] = []
    opened = [
        (await loop.create_connection(lambda: _Connection(ask, latencies), "127.0.0.1", port))[1]
        for _ in range(connections)
    ]
    await asyncio.sleep(seconds)
    for one in opened:
        one.transport.abort()
        if one.fault:
            raise RuntimeError(one.fault.decode(errors="replace"))
    return latencies


class Bench:
    """One service, its filled database, and the requests made of it."""

    def __init__(self, service: Service, jobs: int, options: argparse.Namespace) -> None:
        self.service, self.jobs, self.options = service, jobs, options
        self.rows: list[dict[str, Any]] = []

    def measure(self, ask: Callable[[], bytes]) -> Measured:
        port = int(self.service.port)
        uvloop.run(load(port, ask, self.options.connections, 1.0))  # caches fill, pages of the file are read
        before = self._cpu()
        began = time.perf_counter()
        latencies = sorted(uvloop.run(load(port, ask, self.options.connections, self.options.seconds)))
        took = time.perf_counter() - began
        count = len(latencies)
        spent = (self._cpu() - before) * 1e6
        return Measured(count / took, latencies[count // 2] * 1e3, latencies[count * 99 // 100] * 1e3, spent / count)

    def run(self) -> Iterator[tuple[str, Measured]]:
        with self.service.http() as http:
            data = upload(http, "load", "train.jsonl", training_rows())
            spec = {"trainingDatasetUri": data, "hyperParameters": {"epochCount": "2"}}
            body = {"baseModel": "gemini-2.0-flash-001", "supervisedTuningSpec": spec, "labels": {"team": "load"}}
            job = http.post(JOBS, json=body).raise_for_status().json()
            http.post(f"/v1/{job['name']}:cancel").raise_for_status()
        first = int(job["name"].rpartition("/")[2])
        fill(self.service.home / "sarto.db", str(first), self.jobs)
        project = job["name"].split("/")[1]
        head = f"Host: localhost\r\nAuthorization: Bearer {self.service.token()}\r\n"

        def get() -> bytes:
            wanted = first - STEP * random.randint(1, self.jobs)
            return f"GET {JOBS}/{wanted} HTTP/1.1\r\n{head}\r\n".encode()

        def page(depth: float) -> Callable[[], bytes]:
            last = first - STEP * max(1, int(self.jobs * depth))
            token = pages.token(str(last), "tuningJobs", project, LOCATION, "") if depth else ""
            return lambda: f"GET {JOBS}?pageSize=20&pageToken={token} HTTP/1.1\r\n{head}\r\n".encode()

        sent = json.dumps(body)
        create = f"POST {JOBS} HTTP/1.1\r\n{head}Content-Length: {len(sent)}\r\n\r\n{sent}".encode()
        yield "get", self.measure(get)
        yield "list of 20", self.measure(page(0))
        yield "list of 20, half-way down", self.measure(page(0.5))
        yield "list of 20, near the end", self.measure(page(0.99))
        yield "create", self.measure(lambda: create)

    def _cpu(self) -> float:
        fields = Path(f"/proc/{self.service.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def fill(database: Path, template: str, jobs: int) -> None:
    """Copies of one ended job under ids of their own, older than it, with its labels."""
    with sqlite3.connect(database, timeout=600, isolation_level=None) as connection:
        columns = [row[1] for row in connection.execute("pragma table_info(tuning_job)")]
        made = {"id": "new.id", "resource": f"replace(old.resource, '{template}', new.id)"}
        chosen = ", ".join(made.get(name, f"old.{name}") for name in columns)
        connection.execute("begin immediate")
        connection.execute(
            "create temp table new as with recursive step(k) as (select 1 union all select k + 1 from step where k < ?)"
            " select cast(? - ? * k as text) as id from step order by k desc",
            (jobs, int(template), STEP),
        )
        connection.execute(
            f"insert into tuning_job ({', '.join(columns)}) select {chosen} from new, tuning_job old where old.id = ?",
            (template,),
        )
        connection.execute(
            "insert into job_label (project, job, key, value) select old.project, new.id, old.key, old.value"
            " from job_label old, new where old.job = ?",
            (template,),
        )
        connection.execute("commit")
        connection.execute("pragma wal_checkpoint(truncate)")


@contextmanager
def served(folder: Path) -> Iterator[Service]:
    service = Service(folder / "home")
    service.start(SARTO_CONCURRENT_JOBS="0")  # jobs stay PENDING: no training takes a core
    try:
        yield service
    finally:
        service.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--jobs", type=int, nargs="+", default=[10_000, 1_000_000])
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--connections", type=int, default=16)
    options = parser.parse_args()
    show_processor()
    print(f"{platform.platform()}, {os.cpu_count()} cores, Python {platform.python_version()}, SQLite", flush=True)
    print("\n| Request | Jobs | Requests/s | Median, ms | 99 %, ms | Server CPU, µs | Target |")
    print("|---|---:|---:|---:|---:|---:|---:|", flush=True)
    for jobs in options.jobs:
        with tempfile.TemporaryDirectory() as folder, served(Path(folder)) as service:
            for name, found in Bench(service, jobs, options).run():
                target = TARGETS.get(name.partition(",")[0], 0)
                print(
                    f"| {name} | {jobs:,} | {found.per_second:,.0f} | {found.median:.1f} | {found.p99:.1f}"
                    f" | {found.cpu:.0f} | {target:,} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
