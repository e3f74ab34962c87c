"""The HTTP API against a model of a few lines: jobs, their events and webhooks, objects; a worker moves the jobs.

Whatever is asked in whatever order, both say the same; and faults that are put into the service on purpose are seen.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.errors import Flaky
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

from sarto.catalog import DIGEST_FILE, Catalog
from sarto.control.aip import filters, pages
from sarto.control.jobs import events, states, tuning_jobs
from sarto.control.jobs.states import CANCELLED, CANCELLING, FAILED, RUNNING, SUCCEEDED, Fenced, advance
from sarto.control.scheduling import leases
from sarto.control.scheduling.leases import Lease
from sarto.control.webhooks import subscriptions
from sarto.schema.tuning_jobs import JobState
from sarto.storage.buckets import objects
from sarto.storage.database.tables import tuning_job
from tests.api.doors import House, house
from tests.control.homes import ROWS, wait_until

ENDED = ("SUCCEEDED", "FAILED", "CANCELLED")
ENDS = {state.lower() for state in ENDED}
NAMES = st.sampled_from(["a", "a/b", "c"])
BODY = {"baseModel": "gemini-2.0-flash-001"}
LOOP = asyncio.new_event_loop()
PLACE: list[House] = []
"""The one service of this file; each example has a project of its own."""


@pytest.fixture(scope="module", autouse=True)
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    models = tmp_path_factory.mktemp("models")
    catalog = Catalog.load(models_folder=models)
    for weights in catalog.weights.values():
        folder = catalog.folder(weights)
        folder.mkdir()
        (folder / DIGEST_FILE).write_text(weights.id)
    stack = AsyncExitStack()
    home: Path = tmp_path_factory.mktemp("home")
    opened = house(home, models_folder=models, concurrent_jobs=0, webhook_private_addresses=True)
    PLACE.append(LOOP.run_until_complete(stack.enter_async_context(opened)))
    yield
    LOOP.run_until_complete(stack.aclose())
    PLACE.clear()
    LOOP.close()


@dataclass
class Job:
    """What the model knows of a job."""

    name: str
    label: str
    told: list[str] = field(default_factory=lambda: ["PENDING"])
    """Every state it had."""
    is_ended_in_public: bool = False
    """Ended by the API or the supervisor, which tell it; the worker here does not."""

    @property
    def state(self) -> str:
        return self.told[-1]


class Api(RuleBasedStateMachine):
    jobs = Bundle("jobs")
    held = Bundle("held")

    @initialize(target=jobs)
    def open(self) -> Any:
        self.place = PLACE[0]
        self.project = f"p-{secrets.token_hex(5)}"
        self.place.account(self.project, "roles/owner", self.project)
        self.parent = f"/v1/projects/{self.project}/locations/us-central1"
        self.ask("POST", "/storage/v1/b", {"name": f"{self.project}-b"}, project=self.project)
        self.put("train.jsonl", ROWS)
        hook = self.ask("POST", f"{self.parent}/webhooks", {"uri": "http://127.0.0.1:9/"}).json()
        self.hook = f"/v1/{hook['name']}"
        self.known: dict[str, Job] = {}
        self.requests: dict[str, tuple[str, str]] = {}
        self.holders: dict[str, Lease] = {}
        self.newest: dict[str, Lease] = {}
        """Of each job; it may write though it ran out, as long as nobody took over."""
        self.epochs: dict[str, int] = {}
        self.stored: dict[str, tuple[bytes, str]] = {}
        return multiple(*(self.create(label, None) for label in "xyx"))

    # What a user does

    def ask(self, method: str, path: str, body: Any = None, **params: Any) -> httpx.Response:
        return LOOP.run_until_complete(self.place.ask(self.project, method, path, body, params=params))

    def put(self, name: str, content: bytes, **params: Any) -> httpx.Response:
        headers = {"Authorization": f"Bearer {self.place.tokens[self.project]}"}
        path = f"/upload/storage/v1/b/{self.project}-b/o"
        sent = self.place.client.post(
            path, content=content, headers=headers, params={"uploadType": "media", "name": name, **params}
        )
        return LOOP.run_until_complete(sent)

    @rule(target=jobs, label=st.sampled_from("xy"), number=st.sampled_from([1, 2, None]))
    def create(self, label: str, number: int | None) -> Any:
        spec = {"trainingDatasetUri": f"gs://{self.project}-b/train.jsonl"}
        body = {**BODY, "supervisedTuningSpec": spec, "labels": {"team": label}}
        request = {} if number is None else {"requestId": str(UUID(int=number))}
        answer = self.ask("POST", f"{self.parent}/tuningJobs", body, **request)
        if number is not None and (earlier := self.requests.get(request["requestId"])):
            name, said = earlier
            if said != label or name not in self.known:
                assert answer.status_code == 409
            else:
                assert answer.json()["name"] == name
            return multiple()
        assert answer.status_code == 200, answer.text
        name = answer.json()["name"]
        assert name not in self.known and answer.json()["state"] == "JOB_STATE_PENDING"
        self.known[name] = Job(name, label)
        if number is not None:
            self.requests[request["requestId"]] = (name, label)
        return name

    @rule(size=st.integers(1, 4), state=st.none() | st.sampled_from([*ENDED, "PENDING", "RUNNING", "CANCELLING"]))
    def list_(self, size: int, state: str | None) -> None:
        found, token = [], ""
        while True:
            params: dict[str, Any] = {"pageSize": size, "filter": f'state="JOB_STATE_{state}"' if state else ""}
            page = self.ask("GET", f"{self.parent}/tuningJobs", pageToken=token, **params).json()
            rows = [job["name"] for job in page.get("tuningJobs", ())]
            found += rows
            if not (token := page.get("nextPageToken", "")):
                break
            assert len(rows) == size
        wanted = [job.name for job in self.known.values() if state in (None, job.state)]
        assert found == sorted(wanted, reverse=True)

    @rule(name=jobs)
    def cancel(self, name: str) -> None:
        answer = self.ask("POST", f"/v1/{name}:cancel", {})
        job = self.known.get(name)
        if job is None:
            assert answer.status_code == 404
            return
        assert answer.status_code == 200
        if job.state == "PENDING" or (job.state == "RUNNING" and name not in self.holders):
            job.told.append("CANCELLED")
            job.is_ended_in_public = True
            self.holders.pop(name, None)
        elif job.state == "RUNNING":
            job.told.append("CANCELLING")
        self.read(name, 3)

    @rule(name=jobs)
    def delete(self, name: str) -> None:
        answer = self.ask("DELETE", f"/v1/{name}")
        job = self.known.get(name)
        if job is None or job.state not in ENDED:
            assert answer.status_code == (404 if job is None else 400), answer.text
        else:
            assert answer.status_code == 200
            del self.known[name]

    @rule(name=jobs, size=st.integers(1, 3))
    def read(self, name: str, size: int) -> None:
        """The job, its wait, and its story page by page."""
        job, answer = self.known.get(name), self.ask("GET", f"/v1/{name}")
        if job is None:
            assert answer.status_code == 404
            return
        assert answer.json() == self.ask("POST", f"/v1/{name}:wait", {"timeout": "0.001s"}).json() | {
            key: answer.json()[key] for key in ("updateTime", "tuningJobState") if key in answer.json()
        }
        told, token = [], ""
        while page := self.ask("GET", f"/v1/{name}/events", pageSize=size, pageToken=token).json():
            if not page["events"]:
                break
            told += [event["sequence"] for event in page["events"]]
            token = page["nextPageToken"]
            assert len(told) < 100, "the pages have no end"
        whole = self.ask("GET", f"/v1/{name}/events").json()["events"]
        assert told == [event["sequence"] for event in whole]
        kinds = [event["kind"] for event in whole]
        assert kinds[0] == "created"
        assert [kind for kind in kinds if kind in ENDS] == ["cancelled"] * job.is_ended_in_public

    @rule(name=NAMES, content=st.sampled_from([b"", b"one", b"two"]), when=st.sampled_from(["any", "new", "same"]))
    def write_object(self, name: str, content: bytes, when: str) -> None:
        old = self.stored.get(name)
        given = {"any": {}, "new": {"ifGenerationMatch": "0"}, "same": {"ifGenerationMatch": old[1] if old else "7"}}
        answer = self.put(name, content, **given[when])
        if (when == "new" and old) or (when == "same" and not old):
            assert answer.status_code == 412
            return
        assert answer.status_code == 200
        generation = answer.json()["generation"]
        assert not old or int(generation) > int(old[1])
        self.stored[name] = content, generation

    @rule(name=NAMES)
    def remove_object(self, name: str) -> None:
        answer = self.ask("DELETE", f"/storage/v1/b/{self.project}-b/o/{name.replace('/', '%2F')}")
        assert answer.status_code == (204 if self.stored.pop(name, None) else 404)

    # What a worker does

    @rule(target=held, owner=st.sampled_from("ab"))
    def claim(self, owner: str) -> Any:
        services = self.place.services
        limits = replace(
            services.control.limits, concurrent_jobs=2, run_threads=0, run_memory_bytes=0, lease_seconds=600.0
        )
        lease = leases.claim(services.database, owner, limits)
        free = [n for n, job in self.known.items() if job.state in ("RUNNING", "PENDING") and n not in self.holders]
        if len(self.holders) >= 2 or not free:
            assert lease is None
            return multiple()
        interrupted = [name for name in free if self.known[name].state == "RUNNING"]
        assert lease is not None and (interrupted or free)[0].endswith(f"/{lease.job}")
        name = (interrupted or free)[0]
        assert lease.epoch == self.epochs.get(name, 0) + 1
        self.epochs[name], self.holders[name], self.newest[name] = lease.epoch, lease, lease
        return name, lease

    @rule(one=held, to=st.sampled_from([RUNNING, SUCCEEDED, FAILED, CANCELLED]))
    def move(self, one: tuple[str, Lease], to: JobState) -> None:
        name, lease = one
        job, wanted = self.known.get(name), str(to).removeprefix("JOB_STATE_")
        moves = {"PENDING": ("RUNNING", "FAILED", "CANCELLED"), "RUNNING": ENDED, "CANCELLING": ("CANCELLED",)}
        may = self.newest[name] == lease and job is not None and wanted in moves.get(job.state, ())
        try:
            database = self.place.services.database
            with database.transaction() as connection:
                advance(connection, leases.hold(connection, lease), to, database.now(connection))
        except Fenced:
            assert not may
            return
        assert may and job is not None
        job.told.append(wanted)
        if wanted in ENDED:
            self.holders.pop(name, None)

    @rule(one=held)
    def begin(self, one: tuple[str, Lease]) -> None:
        self.move(one, RUNNING)

    @rule(one=held)
    def cancel_what_is_held(self, one: tuple[str, Lease]) -> None:
        self.cancel(one[0])

    @rule(one=held)
    def lose(self, one: tuple[str, Lease]) -> None:
        """The lease runs out; a job that is being cancelled is then ended by whatever supervisor sees it, here the
        service's own."""
        name, lease = one
        if self.holders.get(name) == lease:
            with self.place.services.database.transaction() as connection:
                connection.execute(tuning_job.update().where(tuning_job.c.id == lease.job).values(lease_until=1.0))
            del self.holders[name]
            job = self.known[name]
            if job.state == "CANCELLING":
                wait_until(lambda: self.ask("GET", f"/v1/{name}").json()["state"] == "JOB_STATE_CANCELLED")
                job.told.append("CANCELLED")
                job.is_ended_in_public = True

    @rule(target=held, one=held)
    def go_on_as_a_zombie(self, one: tuple[str, Lease]) -> Any:
        """Lose the lease, see another take over whatever is next, and write all the same."""
        self.lose(one)
        other = self.claim("b" if one[1].owner == "a" else "a")
        self.move(one, SUCCEEDED)
        return other

    # What must hold after each

    @invariant()
    def states_agree(self) -> None:
        if not hasattr(self, "known"):
            return
        listed = self.ask("GET", f"{self.parent}/tuningJobs", pageSize=100).json().get("tuningJobs", ())
        assert {job["name"]: job["state"].removeprefix("JOB_STATE_") for job in listed} == {
            job.name: job.state for job in self.known.values()
        }

    def teardown(self) -> None:
        if not hasattr(self, "known"):
            return
        try:
            self._check_the_end()
        finally:
            with self.place.services.database.transaction() as connection:
                connection.execute(tuning_job.delete())

    def _check_the_end(self) -> None:
        found = self.ask("GET", f"/storage/v1/b/{self.project}-b/o").json()["items"]
        objects_ = {one["name"]: one["generation"] for one in found if one["name"] != "train.jsonl"}
        assert objects_ == {name: generation for name, (_, generation) in self.stored.items()}
        for name, (content, _) in self.stored.items():
            path = f"/storage/v1/b/{self.project}-b/o/{name.replace('/', '%2F')}"
            assert self.ask("GET", path, alt="media").content == content
        told: dict[str, list[str]] = {}
        for one in reversed(self.ask("GET", f"{self.hook}/deliveries", pageSize=100).json().get("deliveries", ())):
            told.setdefault(one["message"]["data"]["name"], []).append(one["message"]["type"])
        for job in self.known.values():
            assert told.get(job.name, []) == [f"tuning_job.{state.lower()}" for state in job.told[1:]]


QUICK = settings(
    max_examples=15, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck), database=None,
    phases=[Phase.generate], print_blob=False, report_multiple_bugs=False,
)  # fmt: skip
TestApi = Api.TestCase
TestApi.settings = QUICK


def _cancel_overwrites(connection: Any, row: Any, to: JobState, *rest: Any) -> Any:
    return REAL_ADVANCE(connection, row, CANCELLED if to is CANCELLING else to, *rest)


def _no_fence(connection: Any, lease: Lease) -> Any:
    ours = tuning_job.c.project == lease.project, tuning_job.c.id == lease.job
    row = connection.execute(sa.select(tuning_job).where(*ours)).first()
    if row is None:
        raise Fenced
    return row


def _without_cancelled(*given: Any) -> None:
    if given[5] != "cancelled":
        REAL_RECORD(*given)


def _token_too_early(last: str, *scope: str) -> str:
    return REAL_TOKEN(str(int(last) + 1), *scope)


def _events_again(control: Any, principal: Any, name: Any, after: int = 0, limit: int = 9) -> Any:
    return REAL_EVENTS(control, principal, name, max(after - 1, 0), limit)


REAL_ADVANCE, REAL_RECORD, REAL_EVENTS = states.advance, events.record, events.list_events
REAL_TOKEN = pages.token
BUGS: dict[str, tuple[object, str, object]] = {
    "a request id is forgotten": (tuning_jobs, "_earlier", lambda *_: None),
    "a request id is taken for the same whatever was said": (tuning_jobs, "_digest", lambda *_: "same"),
    "cancel overwrites what runs": (tuning_jobs, "advance", _cancel_overwrites),
    "running jobs are deleted": (tuning_jobs, "FINAL_STATES", frozenset(JobState)),
    "the filter is ignored": (filters, "to_sql", lambda *_: sa.true()),
    "a page begins with the last row again": (pages, "token", _token_too_early),
    "events begin at the cursor": (events, "list_events", _events_again),
    "a cancel is not told": (events, "record", _without_cancelled),
    "webhooks are forgotten": (subscriptions, "enqueue", lambda *_: None),
    "anyone may write for a job": (leases, "hold", _no_fence),
    "preconditions are ignored": (objects.Conditions, "check", lambda *_: None),
    "every move is legal": (states, "MOVES", {state: frozenset(JobState) for state in JobState}),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("bug", BUGS)
def test_a_fault_put_into_the_service_is_seen(monkeypatch: pytest.MonkeyPatch, bug: str) -> None:
    where, name, wrong = BUGS[bug]
    monkeypatch.setattr(where, name, wrong)
    searching = settings(QUICK, max_examples=200, derandomize=True)
    with pytest.raises((AssertionError, ExceptionGroup, KeyError, Fenced, Flaky)):
        run_state_machine_as_test(Api, settings=searching)
