"""Metrics in Prometheus's text format: the generation worker's counters, and jobs by state."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.requests import Request

from sarto.api.http.responses import Reply
from sarto.api.http.routing import Route
from sarto.api.http.services import in_control, services
from sarto.control.jobs.job_counts import PERMISSION, jobs_by_state

CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"
Read = Callable[[Mapping[str, Any]], float]
GAUGES: dict[str, tuple[str, Read]] = {
    "requests_running": ("Requests that are being answered.", lambda b: b["running"]),
    "cache_reserved_tokens": (
        "Places in the key/value cache that are promised.",
        lambda b: b["cache"]["reservedTokens"],
    ),
    "cache_limit_tokens": ("Places in the key/value cache.", lambda b: b["cache"]["limitTokens"]),
    "prefix_cache_bytes": ("Memory of remembered prompts.", lambda b: b["prefixes"]["sizeBytes"]),
    "adapters_resident": ("Adapters in memory.", lambda b: b["adapters"]["resident"]),
    "adapters_in_use": ("Adapters of requests that are being answered.", lambda b: b["adapters"]["inUse"]),
}
COUNTERS: dict[str, tuple[str, Read]] = {
    "prompt_tokens": ("Prompt tokens computed.", lambda b: b["promptTokens"]),
    "generated_tokens": ("Tokens generated.", lambda b: b["generatedTokens"]),
    "prefix_asked_tokens": ("Prompt tokens that were looked up.", lambda b: b["prefixes"]["askedTokens"]),
    "prefix_hit_tokens": ("Prompt tokens that were remembered.", lambda b: b["prefixes"]["hitTokens"]),
    "adapter_hits": ("Requests whose adapter was in memory.", lambda b: b["adapters"]["hits"]),
    "adapter_loads": ("Adapters put into memory.", lambda b: b["adapters"]["misses"]),
    "adapter_evictions": ("Evicted adapters.", lambda b: b["adapters"]["evictions"]),
    "adapter_load_seconds": ("Time that putting them there took.", lambda b: b["adapters"]["loadSeconds"]),
}


async def metrics(request: Request) -> Reply:
    """Metrics in Prometheus's text format. A generation worker that is not running is not started."""
    jobs = await in_control(request, jobs_by_state)
    registry = CollectorRegistry()
    registry.register(_StateCollector(await services(request).generator.metrics(), jobs))
    return Reply(generate_latest(registry), content_type=CONTENT_TYPE)


class _StateCollector(Collector):
    def __init__(self, worker: dict[str, Any] | None, jobs: dict[str, int]) -> None:
        self._worker, self._jobs = worker, jobs

    def collect(self) -> Iterator[Metric]:
        up = self._worker is not None
        yield GaugeMetricFamily("sarto_worker_up", "Whether a generation worker runs.", value=up)
        jobs = GaugeMetricFamily("sarto_tuning_jobs", "Tuning jobs by state.", labels=["state"])
        for state, count in sorted(self._jobs.items()):
            jobs.add_metric([state], count)
        yield jobs
        if self._worker is None:
            return
        yield GaugeMetricFamily("sarto_requests_waiting", "Requests in the queue.", value=self._worker["waiting"])
        bases: list[dict[str, Any]] = self._worker["bases"]
        for families, kind in ((GAUGES, GaugeMetricFamily), (COUNTERS, CounterMetricFamily)):
            for name, (title, read) in families.items():
                family = kind(f"sarto_{name}", title, labels=["base"])
                for base in bases:
                    family.add_metric([base["base"]], read(base))
                yield family


ROUTES = [
    Route("GET", "/metrics", metrics, PERMISSION, "Numbers for Prometheus", response="text/plain", query=None),
]
