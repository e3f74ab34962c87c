"""What a server has for runs, what a job's run takes of it, and which servers there are.

A run takes the threads of one run, one GPU where there are any, and the memory that its base and adapter need. What a
run could not do with is refused when the job is made; what does not fit just now waits.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import orjson
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from sarto.control import disk
from sarto.control.context import AnyRow, Control, Limits
from sarto.control.validation import Plan
from sarto.errors import FailedPrecondition
from sarto.schema.base_shape import BaseShape
from sarto.storage.database import Database
from sarto.storage.tables import server

ALIVE_SECONDS = 60.0
"""A server that was not heard of for so long is taken for gone."""
STATES_PER_WEIGHT = 4
"""A trained weight, its gradient, and what the optimiser remembers of it."""
RUNS_SHARE = 0.8
"""Of a machine's memory, what runs may take unless a setting says otherwise."""


def machine_memory_bytes() -> int:
    """What this machine has, or its control group where that is less."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
    except OSError:
        return total
    return min(total, int(limit)) if limit.isdigit() else total


def with_needs(control: Control, plan: Plan, *, low_memory: bool) -> Plan:
    """The plan with what its run needs. Raises FailedPrecondition, with the numbers, when no server has that."""
    needed, least = _needs(control, plan, low_memory)
    found = replace(plan, memory_bytes=needed, least_memory_bytes=least)
    with control.database.reading() as connection:
        largest = largest_memory(connection, control.database.now(connection), control.limits)
    if largest and least > largest:
        raise FailedPrecondition(unfit(found, largest))
    return found


def unfit(plan: Plan, largest: int) -> str:
    """Why a job can never run here."""
    return (
        f"Tuning {plan.base_model} at rank {plan.rank} needs at least {_giga(plan.least_memory_bytes)} of memory, and"
        f" no server here has more than {_giga(largest)} for runs. Choose a smaller base model, or have the"
        " administrator raise run_memory_bytes or add a machine."
    )


def plan_of(row: AnyRow) -> Plan:
    return Plan(**orjson.loads(row.run))


def is_full(limits: Limits, runs: int) -> bool:
    """Whether a server with so many runs has no place for another, whatever it needs."""
    return bool(_lacking(limits, runs))


def never_fits(limits: Limits, plan: Plan) -> bool:
    return 0 < limits.run_memory_bytes < plan.least_memory_bytes


def lack(limits: Limits, running: Sequence[Plan], plan: Plan) -> str:
    """Why a run cannot start beside those of this server, in words; empty when it can."""
    lacking = _lacking(limits, len(running))
    if lacking:
        return lacking
    taken = sum(_share(limits, one) for one in running)
    needed = _share(limits, plan)
    if limits.run_memory_bytes and running and taken + needed > limits.run_memory_bytes:
        there = "the run there is takes" if len(running) == 1 else f"the {len(running)} runs there are take"
        return (
            f"its run takes about {_giga(needed)} of memory, and of this server's {_giga(limits.run_memory_bytes)} for"
            f" runs {there} {_giga(taken)}"
        )
    return ""


def _lacking(limits: Limits, runs: int) -> str:
    """What is used up whatever a run needs, in words."""
    are = "is 1 run" if runs == 1 else f"are {runs} runs"
    if limits.concurrent_runs and runs >= limits.concurrent_runs:
        return f"there {are} on this server, and concurrent_runs lets no more run at once"
    if limits.run_gpus and runs >= (limits.run_gpus if limits.devices == 1 else 1):
        takes = "each takes one" if limits.devices == 1 else f"a run works on {limits.devices} of them"
        return f"there {are} on the {limits.run_gpus} GPUs of this server, and {takes}"
    if runs and limits.run_threads and (runs + 1) * limits.threads > limits.run_threads:
        return f"there {are} of {limits.threads} threads on this server, which has {limits.run_threads} for runs"
    return ""


def _share(limits: Limits, plan: Plan) -> int:
    """Of this server's memory. A run that needs all of it, or nobody knows how much, has it alone."""
    return min(plan.memory_bytes or limits.run_memory_bytes, limits.run_memory_bytes)


def _needs(control: Control, plan: Plan, low_memory: bool) -> tuple[int, int]:
    """Bytes a run takes, and with which it can still do; 0 where the base does not say its shape."""
    try:
        base = control.base(plan.weights)
        folder = Path(base.folder)
        shape = BaseShape.load(folder, base.quantisation)
    except (FailedPrecondition, OSError, ValueError, KeyError, TypeError):
        return 0, 0  # a base of the user's own is made when its first run begins
    trained = STATES_PER_WEIGHT * disk.adapter_bytes(folder, plan.rank)
    least = shape.least_bytes + trained
    return (max(least, shape.peak_bytes() // 2) if low_memory else shape.peak_bytes() + trained), least


def _giga(size: int) -> str:
    return f"{size / 1e9:.1f} GB"


# The servers of one database


def tell(database: Database, owner: str, limits: Limits) -> None:
    """That this server lives, and what it has; forgets those that are long gone."""
    values = {"host": socket.gethostname()[:253], "memory_bytes": limits.run_memory_bytes}
    with database.transaction() as connection:
        now = database.now(connection)
        connection.execute(server.delete().where((server.c.owner == owner) | (server.c.until < now - ALIVE_SECONDS)))
        connection.execute(server.insert().values(owner=owner, until=now + ALIVE_SECONDS, **values))


def leave(database: Database, owner: str) -> None:
    with database.transaction() as connection:
        connection.execute(server.delete().where(server.c.owner == owner))


def largest_memory(connection: Connection, now: float, limits: Limits) -> int:
    """Bytes for runs on the largest server that lives, this one included; 0 where one is not bounded."""
    living = connection.execute(sa.select(server.c.memory_bytes).where(server.c.until >= now)).scalars().all()
    found = [limits.run_memory_bytes, *living]
    return 0 if 0 in found else max(found)
