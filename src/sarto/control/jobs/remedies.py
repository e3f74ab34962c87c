"""How a user makes a job fit that was refused for lack of memory, by the names of labels and settings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sarto.contract.tuning_run import Remedy
from sarto.control.jobs.label_switches import LOW_MEMORY_LABEL, QUANTISATION_LABEL


def with_remedies(status: dict[str, Any], remedies: Sequence[Remedy]) -> dict[str, Any]:
    """The google.rpc.Status of a run's error; its message ends with what to do."""
    if not remedies:
        return status
    return {**status, "message": f"{status['message']} To make it fit, {'; or '.join(map(_words, remedies))}."}


def _words(remedy: Remedy) -> str:
    size = f"{remedy.needed_bytes >> 20} MiB"
    match remedy.kind:
        case "quantisation":
            return f"set the label {QUANTISATION_LABEL}={remedy.value}, with which it needs {size}"
        case "devices":
            return f"have the administrator set devices={remedy.value}, with which it needs {size} on each GPU"
        case "smaller_base":
            return "tune a smaller base model or a smaller adapter"
        case "low_memory":
            return f'set the label {LOW_MEMORY_LABEL} to "true"'
        case "memory_limit":
            return "have the administrator raise run_memory_bytes"
