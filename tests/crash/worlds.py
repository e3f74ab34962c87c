"""What the crash tests share: homes made from a template, API and supervisor as processes that can be killed anywhere,
and what must hold whatever was killed.

A child is forked from a server that has everything imported, so that hundreds of them are cheap.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import multiprocessing.connection
import os
import shutil
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID, uuid4

import orjson
import sqlalchemy as sa

from sarto.configuration import Limits
from sarto.control import retention
from sarto.control.context import Control
from sarto.control.jobs import tuning_jobs
from sarto.control.runs.supervisor import Supervisor
from sarto.errors import SartoError
from sarto.names import ResourceName, parse_gs_uri, parse_resource
from sarto.schema.tuning_jobs import JobState, TuningJob
from sarto.storage.database.tables import (
    checkpoint,
    endpoint,
    job_event,
    model_version,
    tuning_job,
    webhook,
    webhook_delivery,
)
from sarto.system import failpoints
from tests.control.homes import PARENT, job_body, make_control, member, open_control, stand_in_executor

LIMITS = Limits(
    threads=1, concurrent_jobs=6, concurrent_runs=6, lease_seconds=1.0, webhook_private_addresses=True, reserve_bytes=0
)
STEPS = {"spec": {"hyperParameters": {"epochCount": 1}}}
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["tests.crash.worlds"])
PATIENCE_SECONDS = 60.0
TURN = threading.Lock()
"""Starting a process also reaps those that have ended; two threads that read one's exit code would get half of it."""
LEFTOVERS = ("adapters/0123", "runs/1234567890123456789")
ENDS = ("succeeded", "failed", "cancelled")


@dataclass(frozen=True)
class World:
    """A home and its database."""

    home: Path
    url: str = ""

    def open(self) -> Control:
        return open_control(self.home, self.url, LIMITS)


def add_webhook(control: Control) -> None:
    """One that nobody answers, so that what is to be told can be counted."""
    project = member(control).project
    with control.database.transaction() as connection:
        connection.execute(
            webhook.insert().values(
                project=project, id="1", location=PARENT.location, uri="http://127.0.0.1:9/",
                secret="whsec_", resource="{}", create_time=1.0,
            )
        )  # fmt: skip


class Template:
    """Worlds that begin alike; `server` is a PostgreSQL URL, or empty for SQLite."""

    def __init__(self, folder: Path, server: str = "") -> None:
        self.folder, self.server = folder, server
        self.name = f"t{uuid4().hex}"
        url = self._create(self.name, "template1") if server else ""
        control = make_control(folder / "template", url, LIMITS)
        add_webhook(control)
        control.database.close()

    def world(self) -> World:
        name = uuid4().hex[:12]
        home = self.folder / name
        shutil.copytree(self.folder / "template", home, copy_function=_link)
        return World(home, self._create(f"w{name}", self.name) if self.server else "")

    def drop(self, world: World) -> None:
        shutil.rmtree(world.home, ignore_errors=True)
        if self.server:
            self._execute(f"drop database {sa.make_url(world.url).database} with (force)")

    def _create(self, name: str, template: str) -> str:
        self._execute(f"create database {name} template {template}")
        return sa.make_url(self.server).set(database=name).render_as_string(hide_password=False)

    def _execute(self, statement: str) -> None:
        engine = sa.create_engine(self.server, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.exec_driver_sql(statement)
        engine.dispose()


def _link(source: str, target: str) -> None:
    shutil.copy2(source, target) if "sarto.db" in source else os.link(source, target)


def start(role: Callable[..., None], *arguments: object) -> multiprocessing.process.BaseProcess:
    child = FORKS.Process(target=_child, args=(role, arguments), daemon=True)
    with TURN:
        child.start()
    return child


def _child(role: Callable[..., None], arguments: tuple[object, ...]) -> None:
    os.environ.pop("PYTEST_CURRENT_TEST", None)
    sys.stderr = open(os.devnull, "w")  # noqa: PTH123, SIM115
    role(*arguments)
    os._exit(0)  # threads that still wait for something end too


def end(child: multiprocessing.process.BaseProcess) -> int:
    """The exit code; a child that hangs is a failure."""
    multiprocessing.connection.wait([child.sentinel], PATIENCE_SECONDS)
    with TURN:
        child.join(0)
        assert child.exitcode is not None, "a process hangs"
        return child.exitcode


def watch(log: str, die_at: str, time_: int) -> None:
    """Have this process write the places it reaches, or die at one."""
    failpoints.arm(failpoints.writing_to(log) if log else failpoints.dying_at(die_at, time_) if die_at else None)


# What the processes do


def request_id(number: int) -> str:
    return str(UUID(int=number))


def make(control: Control, number: int, data: str = "train") -> ResourceName:
    """The job with this number, made now or by an earlier call."""
    job = TuningJob.read(job_body(data, tunedModelDisplayName=f"job {number}", **STEPS), "tuning_job")
    made = tuning_jobs.create(control, member(control), PARENT, job, request_id(number))
    return parsed(made["name"])


def parsed(name: str) -> ResourceName:
    return parse_resource(name, "tuningJobs")


def api(world: World, log: str = "", die_at: str = "", time_: int = 1) -> None:
    """A client's session; to repeat it changes nothing."""
    control = world.open()
    watch(log, die_at, time_)
    make(control, 1)
    second = make(control, 2)
    tuning_jobs.cancel(control, member(control), second)
    control.buckets.put_bytes("data", "note", b"a note")
    try:
        control.buckets.create_bucket(member(control).project, "more")
    except SartoError:
        pass  # by the session before
    make(control, 3)
    control.buckets.put_bytes("more", "note", b"another")
    control.buckets.sweep()
    watch("", "", 1)


def supervise(world: World, log: str = "", die_at: str = "", time_: int = 1) -> None:
    """A supervisor until all jobs have ended; job 4 is cancelled once it runs."""
    control = world.open()
    watch(log, die_at, time_)
    supervisor = Supervisor(control, stand_in_executor())
    supervisor.start()
    while left := [row for row in rows(control) if not JobState(row.state).is_final]:
        for row in left:
            resource = orjson.loads(row.resource)
            if row.state == "JOB_STATE_RUNNING" and resource["tunedModelDisplayName"] == "job 4":
                tuning_jobs.cancel(control, member(control), parsed(resource["name"]))
        collect_sometimes(control)
        time.sleep(0.05)
    retention.collect(control)
    watch("", "", 1)
    supervisor.stop()


def supervise_for_ever(world: World) -> None:
    """Says in the home under which name it holds jobs."""
    supervisor = Supervisor(world.open(), stand_in_executor())
    (world.home / f"owner-{os.getpid()}").write_text(supervisor.owner)
    supervisor.start()
    while True:
        collect_sometimes(supervisor.control)
        time.sleep(0.2)


def collect_sometimes(control: Control, seconds: float = 0.5) -> None:
    """What is left over, as often as is cheap."""
    if time.monotonic() - _collected[0] > seconds:
        retention.collect(control)
        _collected[0] = time.monotonic()


_collected = [0.0]


def plant(control: Control) -> None:
    """Leftovers, two days old: of an adapter that was never named, and of a job that is no more."""
    for name in LEFTOVERS:
        folder = control.home / name
        folder.mkdir(parents=True)
        (folder / "file").write_bytes(b"x")
        for path in (folder / "file", folder):
            os.utime(path, (time.time() - 2 * retention.DAY_SECONDS,) * 2)


# What must hold


def rows(control: Control) -> list[sa.Row[tuple[object, ...]]]:
    with control.database.reading() as connection:
        return list(connection.execute(sa.select(tuning_job).order_by(tuning_job.c.id)).all())


def violations(control: Control) -> Iterator[str]:
    """Everything that is wrong in a world whose jobs should all have ended."""
    control.buckets.sweep()
    with control.database.reading() as connection:
        told = connection.execute(sa.select(job_event).order_by(job_event.c.sequence)).all()
        made = connection.execute(sa.select(checkpoint)).all()
        versions = Counter(row.job for row in connection.execute(sa.select(model_version)))
        endpoints = {row.id for row in connection.execute(sa.select(endpoint))}
        hooks = connection.execute(sa.select(webhook_delivery)).all()
    for row in rows(control):
        resource = orjson.loads(row.resource)
        kinds = [event.kind for event in told if event.job == row.id]
        state = row.state.removeprefix("JOB_STATE_")
        if not JobState(row.state).is_final or row.lease_owner is not None or resource["state"] != row.state:
            yield f"{row.id} is {row.state}, held by {row.lease_owner}, its resource says {resource['state']}"
            continue
        if [kind for kind in kinds if kind in ENDS] != [state.lower()] or kinds[-1] != state.lower():
            yield f"{row.id} is {state} and its story is {kinds}"
        if versions[row.id] != (state == "SUCCEEDED"):
            yield f"{row.id} is {state} with {versions[row.id]} models"
        epochs = [event.epoch for event in told if event.job == row.id]
        if epochs != sorted(epochs):
            yield f"{row.id}: an older epoch wrote after a newer one: {epochs}"
        if state == "SUCCEEDED" and resource.get("error"):
            yield f"{row.id} succeeded with an error"
        ends = [orjson.loads(hook.body)["type"] for hook in hooks if hook.job == row.id]
        if ends.count(f"tuning_job.{state.lower()}") != 1 or len(ends) != len(set(ends)):
            yield f"{row.id}: webhooks are told {ends}"
    yield from _of_files(control, made, endpoints)
    yield from (f"{name} was not collected" for name in LEFTOVERS if (control.home / name).exists())
    names = Counter(orjson.loads(row.resource)["tunedModelDisplayName"] for row in rows(control))
    yield from (f"{name} was made {count} times" for name, count in names.items() if count > 1)


def _of_files(control: Control, made: list[sa.Row[tuple[object, ...]]], endpoints: set[str]) -> Iterator[str]:  # type: ignore[type-arg]
    for row in made:
        if row.endpoint not in endpoints:
            yield f"checkpoint {row.job}/{row.checkpoint_id} has no endpoint"
        folder = control.adapter_folder(row.adapter_folder)
        bucket, prefix = parse_gs_uri(row.artifact_uri, "uri")
        stored = {one.name.removeprefix(prefix): one for one in control.buckets.list(bucket, prefix).objects}
        kept = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}
        if kept != {name: one.sha256 for name, one in stored.items()}:
            yield f"checkpoint {row.job}/{row.checkpoint_id}: bucket and adapter differ"
        for one in stored.values():
            if hashlib.sha256(control.buckets.path(one).read_bytes()).hexdigest() != one.sha256:
                yield f"object {one.uri} has other bytes"
