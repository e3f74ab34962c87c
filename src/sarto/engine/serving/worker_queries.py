"""Queries of a server to its worker outside generation, by name, which only the process with the models can answer.
Queries about texts are answered by `text_queries`, in other processes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from sarto.engine.dataset_report.machine_speed import measure
from sarto.engine.serving.engine import Engine
from sarto.errors import InvalidArgument


def answer_query(engine: Engine, call: str, payload: dict[str, Any]) -> dict[str, Any]:
    """Run the query with this name. Raises InvalidArgument for an unknown one."""
    if call not in QUERIES:
        raise InvalidArgument(f"The worker has no call {call!r}; it has: generate, {', '.join(QUERIES)}.")
    return QUERIES[call](engine, payload)


def _metrics(engine: Engine, payload: dict[str, Any]) -> dict[str, Any]:
    return engine.metrics()


def _forget_adapters(engine: Engine, payload: dict[str, Any]) -> dict[str, Any]:
    engine.forget_adapters(payload["digests"])
    return {}


def _machine_speed(engine: Engine, payload: dict[str, Any]) -> dict[str, Any]:
    """The speed and memory of this machine with the threads of a run, for the forecast of a data report."""
    return asdict(measure(payload["threads"]))


QUERIES: dict[str, Callable[[Engine, dict[str, Any]], dict[str, Any]]] = {
    "metrics": _metrics,
    "forget_adapters": _forget_adapters,
    "machine_speed": _machine_speed,
}
