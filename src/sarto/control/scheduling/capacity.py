"""The resources of a server for runs, the resources that a job's run takes, and the servers of the database.

A run takes the threads of one run, one GPU where there are any, and the memory for its base and adapter. A job that
fits no server is refused at create; a job that does not fit now waits.
"""

from __future__ import annotations

from collections.abc import Sequence

from sarto.configuration import Limits
from sarto.control.jobs.admission import giga
from sarto.control.jobs.plan import JobPlan

RUNS_SHARE = 0.8
"""Share of a machine's memory for runs, unless a setting says otherwise."""


def is_full(limits: Limits, runs: int) -> bool:
    """Whether a server with this number of runs has no capacity for another, of any size."""
    return bool(_lacking(limits, runs))


def never_fits(limits: Limits, plan: JobPlan) -> bool:
    return 0 < limits.run_memory_bytes < plan.least_memory_bytes


def lack(limits: Limits, running: Sequence[JobPlan], plan: JobPlan) -> str:
    """The reason why a run cannot start beside those of this server; empty when it can."""
    lacking = _lacking(limits, len(running))
    if lacking:
        return lacking
    taken = sum(_share(limits, one) for one in running)
    needed = _share(limits, plan)
    if limits.run_memory_bytes and running and taken + needed > limits.run_memory_bytes:
        there = "the run there is takes" if len(running) == 1 else f"the {len(running)} runs there are take"
        return (
            f"its run takes about {giga(needed)} of memory, and of this server's {giga(limits.run_memory_bytes)} for"
            f" runs {there} {giga(taken)}"
        )
    return ""


def _lacking(limits: Limits, runs: int) -> str:
    """The resource that is used up for runs of any size."""
    are = "is 1 run" if runs == 1 else f"are {runs} runs"
    if limits.concurrent_runs and runs >= limits.concurrent_runs:
        return f"there {are} on this server, and concurrent_runs lets no more run at once"
    if limits.gpus and runs >= (limits.gpus if limits.devices == 1 else 1):
        takes = "each takes one" if limits.devices == 1 else f"a run works on {limits.devices} of them"
        return f"there {are} on the {limits.gpus} GPUs of this server, and {takes}"
    if runs and limits.run_threads and (runs + 1) * limits.threads > limits.run_threads:
        return f"there {are} of {limits.threads} threads on this server, which has {limits.run_threads} for runs"
    return ""


def _share(limits: Limits, plan: JobPlan) -> int:
    """Memory that a run takes of this server. A run that needs all memory, or an unknown amount, runs alone."""
    return min(plan.memory_bytes or limits.run_memory_bytes, limits.run_memory_bytes)


# The servers of one database
