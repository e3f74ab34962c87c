"""Progress of a tuning job: a bar on a terminal, a few lines elsewhere, both computed from the job resource."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from sarto.cli.output import duration
from sarto.schema.tuning_jobs import FINAL_STATES

LINE_EVERY_PERCENT = 10
PHASES = {
    "TUNING_JOB_STATE_WAITING_FOR_QUOTA": "waiting for its turn",
    "TUNING_JOB_STATE_WAITING_FOR_CAPACITY": "waiting for capacity",
    "TUNING_JOB_STATE_PROCESSING_DATASET": "reading the data",
    "TUNING_JOB_STATE_TUNING": "tuning",
    "TUNING_JOB_STATE_POST_PROCESSING": "finishing",
}
STATES = {
    "JOB_STATE_PENDING": "waiting to start",
    "JOB_STATE_RUNNING": "running",
    "JOB_STATE_CANCELLING": "cancelling",
    "JOB_STATE_CANCELLED": "cancelled",
    "JOB_STATE_SUCCEEDED": "succeeded",
    "JOB_STATE_FAILED": "failed",
}


@dataclass(frozen=True)
class JobView:
    """A job as displayed."""

    phase: str
    step: int
    total_steps: int
    facts: str
    """Loss or reward, speed and remaining time, as far as the job has them."""
    is_final: bool

    @property
    def percent(self) -> int:
        return 100 * self.step // self.total_steps if self.total_steps else 0


def read(job: dict[str, Any]) -> JobView:
    """From the JSON of a TuningJob."""
    state = job.get("state", "")
    is_final = state in FINAL_STATES
    phase = "" if is_final or state == "JOB_STATE_CANCELLING" else PHASES.get(job.get("tuningJobState", ""), "")
    metadata = job.get("tuningJobMetadata", {})
    throughput = metadata.get("throughput", {})
    facts = []
    if "loss" in throughput:
        facts.append(f"loss {throughput['loss']:.3f}")
    if "reward" in throughput:
        facts.append(f"reward {throughput['reward']:.3f}")
    if "rewardAccuracy" in throughput:
        facts.append(f"reward accuracy {throughput['rewardAccuracy']:.2f}")
    if not is_final and throughput.get("tokensPerSecond"):
        facts.append(f"{throughput['tokensPerSecond']:,.0f} tokens/s")
    if not is_final and throughput.get("secondsLeft"):
        facts.append(f"{duration(throughput['secondsLeft'])} left")
    return JobView(
        phase=phase or STATES.get(state, state),
        step=int(metadata.get("completedStepCount", 0)),
        total_steps=int(metadata.get("totalStepCount", 0)),
        facts=" · ".join(facts),
        is_final=is_final,
    )


@dataclass(frozen=True)
class Change:
    """The resource of a job after a change; `note` is a sentence about its present work."""

    job: dict[str, Any]
    note: str = ""


def watch(changes: Iterable[Change], console: Console) -> dict[str, Any]:
    """Follow a job until it ends and return its final state, which is the last of `changes`."""
    follow = _watch_bar if console.is_terminal else _watch_lines
    return follow(changes, console)


def _watch_bar(changes: Iterable[Change], console: Console) -> dict[str, Any]:
    columns = (
        TextColumn("  {task.description:<20}"),
        BarColumn(28),
        TextColumn("{task.fields[steps]:>11}  {task.fields[facts]}"),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("waiting to start", total=None, steps="", facts="")
        note, noted = "", -1
        for change in changes:
            now = read(change.job)
            if change.note:
                note, noted = change.note, now.step
            facts = note if note and noted == now.step and not now.is_final else now.facts
            steps = f"step {now.step}/{now.total_steps}" if now.total_steps else ""
            total = now.total_steps or None
            bar.update(task, description=now.phase, completed=now.step, total=total, steps=steps, facts=facts)
            if change.note:
                bar.refresh()
            if now.is_final:
                return change.job
    raise EOFError("the job was not followed to its end")


def _watch_lines(changes: Iterable[Change], console: Console) -> dict[str, Any]:
    """A line when the phase changes, one each ten percent, and one for each note."""
    shown: tuple[str, int] | None = None
    for change in changes:
        now = read(change.job)
        position = (now.phase, now.percent // LINE_EVERY_PERCENT)
        if change.note and not now.is_final:
            console.print(f"  {now.phase:<20}  {change.note}", markup=False)
        elif position != shown:
            steps = f"step {now.step}/{now.total_steps}" if now.total_steps else ""
            console.print("  " + "  ".join(part for part in (f"{now.phase:<20}", steps, now.facts) if part.strip()))
            shown = position
        if now.is_final:
            return change.job
    raise EOFError("the job was not followed to its end")
