"""Quotas of projects, and jobs that take turns on what a server has: threads, memory, GPUs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from sarto.assembly.machine import count_gpus
from sarto.configuration import Limits
from sarto.contract.base_shape import BaseShape
from sarto.contract.tuning_run import RunSpec
from sarto.control.context import Control
from sarto.control.jobs import events, quotas, servers
from sarto.control.jobs.states import FAILED, advance
from sarto.control.runs.supervisor import Supervisor
from sarto.control.scheduling import leases, queue
from sarto.control.scheduling.leases import Lease
from sarto.errors import FailedPrecondition, InvalidArgument, PermissionDenied
from sarto.names import ResourceName
from tests.control.homes import ROOT, add_project, create, make_control, member, read, state, wait_for_end, wait_until

Supervise = Callable[[Control], Supervisor]
GIGA = 10**9
WIDE = Limits(threads=1, concurrent_jobs=9, lease_seconds=60.0, reserve_bytes=0)
SHAPE = {
    "num_hidden_layers": 30, "hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9,
    "num_key_value_heads": 3, "vocab_size": 49152,
}  # fmt: skip


@pytest.fixture(params=["sqlite", "postgresql"])
def shaped(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Control]:
    """A home whose base model says its shape: about 3 GB for a run, 0.8 GB at the least."""
    made = make_control(tmp_path, request.getfixturevalue("postgres_url") if request.param == "postgresql" else "")
    for weights in made.catalog.weights.values():
        (made.catalog.folder(weights) / "config.json").write_text(json.dumps(SHAPE))
    yield made
    made.database.close()


def claim(control: Control, limits: Limits, owner: str = "a") -> Lease | None:
    return leases.claim(control.database, owner, limits)


def end(control: Control, lease: Lease) -> None:
    with control.database.transaction() as connection:
        advance(connection, leases.hold(connection, lease), FAILED, control.database.now(connection))


def show(control: Control, limits: Limits, owner: str = "a") -> None:
    with control.database.transaction() as connection:
        queue.show_waiting(connection, control.database.now(connection) + 1.0, owner, limits)


def last_event(control: Control, name: ResourceName) -> tuple[str, str]:
    told = events.list_events(control, member(control, name.project), name)[0][-1]
    return told["kind"], told["message"]


def test_memory_admits_what_fits_and_the_rest_waits_with_the_numbers(shaped: Control) -> None:
    limits = replace(WIDE, run_memory_bytes=7 * GIGA)
    names = [create(shaped) for _ in range(3)]
    assert [claim(shaped, limits), claim(shaped, limits)].count(None) == 0
    assert claim(shaped, limits) is None
    show(shaped, limits)
    assert read(shaped, names[2])["tuningJobState"] == queue.WAITING_FOR_CAPACITY
    kind, words = last_event(shaped, names[2])
    assert kind == "waiting" and "7.0 GB" in words and "the 2 runs there are take" in words
    show(shaped, limits)
    assert len(events.list_events(shaped, member(shaped), names[2])[0]) == 2, "it is told once"
    assert claim(shaped, limits, "another server") is not None


def test_a_job_that_needs_more_than_the_usual_step_runs_alone_on_a_small_server(shaped: Control) -> None:
    create(shaped), create(shaped)
    small = replace(WIDE, run_memory_bytes=GIGA)
    assert claim(shaped, small) is not None and claim(shaped, small) is None


def test_a_job_that_fits_no_server_is_refused_with_the_numbers(shaped: Control) -> None:
    tiny = replace(shaped, limits=replace(WIDE, run_memory_bytes=GIGA // 4))
    with pytest.raises(FailedPrecondition, match=r"needs at least 0\.\d GB of memory, and no server .* 0\.2 GB"):
        create(tiny)
    servers.tell(shaped.database, "larger", replace(WIDE, run_memory_bytes=8 * GIGA))
    create(tiny)
    servers.leave(shaped.database, "larger")
    with pytest.raises(FailedPrecondition, match="run_memory_bytes"):
        create(tiny)


def test_a_job_that_no_server_can_run_any_more_fails_with_the_numbers(shaped: Control) -> None:
    name, tiny = create(shaped), replace(WIDE, run_memory_bytes=GIGA // 4)
    assert claim(shaped, tiny) is None
    servers.tell(shaped.database, "larger", WIDE)
    show(shaped, tiny)
    assert state(shaped, name) == "PENDING", "the larger server can"
    servers.leave(shaped.database, "larger")
    show(shaped, tiny)
    job = read(shaped, name)
    assert job["state"] == "JOB_STATE_FAILED" and job["error"]["code"] == 9 and "0.2 GB" in job["error"]["message"]
    assert last_event(shaped, name)[0] == "failed"


def test_the_low_memory_label_asks_for_less(shaped: Control) -> None:
    create(shaped, labels={"sarto-low-memory": "true"}), create(shaped, labels={"sarto-low-memory": "true"})
    limits = replace(WIDE, run_memory_bytes=4 * GIGA)
    assert claim(shaped, limits) is not None and claim(shaped, limits) is not None


def test_a_quantised_base_asks_for_less(shaped: Control) -> None:
    folder = Path(shaped.base("smollm2-135m-instruct").folder)
    plain, packed = BaseShape.load(folder), BaseShape.load(folder, "nf4")
    layers = plain.parameters - plain.embeddings
    assert plain.least_bytes - packed.least_bytes == 2 * layers - int(0.5625 * layers)
    assert (
        plain.peak_bytes() - packed.peak_bytes() == 4 * plain.parameters - int(0.5625 * layers) - 2 * plain.embeddings
    )
    create(shaped, labels={"sarto-quantisation": "nf4"})
    limits = replace(WIDE, run_memory_bytes=plain.least_bytes - 1)
    assert claim(shaped, limits) is not None


def test_threads_and_gpus_bound_the_runs_of_a_server(control: Control) -> None:
    names = [create(control) for _ in range(4)]
    for limits, words in (
        (replace(WIDE, threads=4, run_threads=8), "2 runs of 4 threads on this server, which has 8"),
        (replace(WIDE, run_gpus=2), "2 runs on the 2 GPUs"),
        (replace(WIDE, concurrent_runs=2), "concurrent_runs"),
    ):
        taken = [claim(control, limits), claim(control, limits)]
        assert None not in taken and claim(control, limits) is None
        waiting = names[-1]
        show(control, limits)
        assert words in last_event(control, waiting)[1]
        with control.database.transaction() as connection:
            connection.exec_driver_sql("update tuning_job set lease_owner = null, lease_until = null")
            connection.exec_driver_sql("update tuning_job set resource = json_remove(resource, '$.tuningJobState')")


def test_runs_on_several_gpus_get_one_each(control: Control, supervise: Supervise) -> None:
    two = replace(control, limits=replace(WIDE, run_gpus=2))
    names = [create(two, "slow") for _ in range(2)]
    supervise(two)
    specs = [two.job_folder(name.id) / "1" / "spec.json" for name in names]
    wait_until(lambda: all(spec.exists() for spec in specs))
    assert {RunSpec.model_validate_json(spec.read_bytes()).device for spec in specs} == {"cuda:0", "cuda:1"}


def test_visible_gpus_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    assert count_gpus({"CUDA_VISIBLE_DEVICES": ""}) == 0
    assert count_gpus({"CUDA_VISIBLE_DEVICES": "-1"}) == 0
    assert count_gpus({"CUDA_VISIBLE_DEVICES": "3"}) == 1


def test_a_large_job_whose_turn_it_is_is_not_overtaken(shaped: Control) -> None:
    other = add_project(shaped, "other").project
    limits = replace(WIDE, run_memory_bytes=4 * GIGA)
    small = {"labels": {"sarto-low-memory": "true"}}
    first = create(shaped, **small)
    lease = claim(shaped, limits)
    assert lease is not None and lease.job == first.id
    large = create(shaped, "gs://data-other/train.jsonl", project="other")
    create(shaped, **small)
    assert claim(shaped, limits) is None
    end(shaped, lease)
    taken = claim(shaped, limits)
    assert taken is not None and (taken.project, taken.job) == (other, large.id)


def test_a_project_has_a_quota_of_its_own(any_control: Control) -> None:
    control, caller = any_control, member(any_control)
    assert quotas.get(control, caller, "demo") == {
        "name": f"projects/{caller.project}/quota", "concurrentJobs": 1, "isDefault": True, "runningJobs": 0,
        "pendingJobs": 0,
    }  # fmt: skip
    for _ in range(3):
        create(control)
    limits = replace(WIDE, concurrent_jobs=1)
    assert claim(control, limits) is not None and claim(control, limits) is None
    with pytest.raises(PermissionDenied, match=r"quotas\.update"):
        quotas.set_quota(control, caller, "demo", 5)
    quotas.set_quota(control, ROOT, "demo", 2)
    assert claim(control, limits) is not None and claim(control, limits) is None
    found = quotas.get(control, caller, "demo")
    assert (found["concurrentJobs"], found["isDefault"], found["runningJobs"]) == (2, False, 2)
    quotas.set_quota(control, ROOT, "demo", 0)
    assert claim(control, WIDE) is None
    quotas.reset(control, ROOT, "demo")
    assert claim(control, WIDE) is not None
    with pytest.raises(InvalidArgument, match="-1 is not between"):
        quotas.set_quota(control, ROOT, "demo", -1)


def test_a_job_within_the_quota_that_is_about_to_start_is_told_of_no_wait(
    control: Control, supervise: Supervise
) -> None:
    first, second = create(control), create(control)
    supervise(control)
    wait_for_end(control, second)
    assert "waiting" not in [one["kind"] for one in events.list_events(control, member(control), first)[0]]
