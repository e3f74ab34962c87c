"""Batch predictions on both databases: rows in, predictions out, in order, whatever dies in between."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import orjson
import pytest
import sqlalchemy as sa

from sarto.control.access import authorization, projects
from sarto.control.batches import batch_predictions
from sarto.control.batches.batch_runner import MOST_IN_HAND, MOST_ROW_BYTES, Answer, BatchRunner
from sarto.control.context import Control
from sarto.control.models.resolution import ResolvedModel
from sarto.errors import FailedPrecondition, InvalidArgument, PermissionDenied, Unimplemented
from sarto.names import LocationName, ResourceName, parse_resource
from sarto.schema.batch_predictions import BatchPredictionJob
from sarto.storage.database.tables import batch_prediction_job as table
from sarto.storage.database.tables import binding
from tests.control.homes import PARENT, member

ENDED = {"JOB_STATE_SUCCEEDED", "JOB_STATE_FAILED", "JOB_STATE_CANCELLED"}


def rows(*texts: str) -> bytes:
    lines = [orjson.dumps({"id": text, "request": {"contents": [{"parts": [{"text": text}]}]}}) for text in texts]
    return b"\n".join(lines) + b"\n"


def body(*uris: str, **changes: Any) -> BatchPredictionJob:
    value: dict[str, Any] = {
        "displayName": "nightly",
        "model": "publishers/google/models/gemini-2.0-flash-001",
        "inputConfig": {"instancesFormat": "jsonl", "gcsSource": {"uris": list(uris)}},
        "outputConfig": {"predictionsFormat": "jsonl", "gcsDestination": {"outputUriPrefix": "gs://batch/out"}},
    }
    return BatchPredictionJob.read(value | changes)


def store(control: Control, name: str, content: bytes) -> str:
    project = member(control).project
    if not control.buckets.buckets(project, prefix="batch"):
        control.buckets.create_bucket(project, "batch")
    control.buckets.put_bytes("batch", name, content)
    return f"gs://batch/{name}"


def made(control: Control, content: bytes) -> ResourceName:
    job = batch_predictions.create(control, member(control), PARENT, body(store(control, "in.jsonl", content)))
    return parse_resource(job["name"], "batchPredictionJobs")


def created_in(control: Control, project: str) -> None:
    with control.database.transaction() as connection:
        projects.insert(connection, project, control.database.now(connection))


def made_in(control: Control, project: str, content: bytes) -> ResourceName:
    """A job in another project, with a bucket of its own."""
    caller = member(control, project)
    control.buckets.create_bucket(caller.project, f"batch-{project}")
    control.buckets.put_bytes(f"batch-{project}", "in.jsonl", content)
    target = {"gcsDestination": {"outputUriPrefix": f"gs://batch-{project}/out"}, "predictionsFormat": "jsonl"}
    job = body(f"gs://batch-{project}/in.jsonl", outputConfig=target)
    made = batch_predictions.create(control, caller, LocationName(project, PARENT.location), job)
    return parse_resource(made["name"], "batchPredictionJobs")


async def echo(deployed: ResolvedModel, request: dict[str, Any]) -> dict[str, Any]:
    text = request["contents"][0]["parts"][0]["text"]
    if text == "bad":
        raise InvalidArgument("no such word")
    return {"candidates": [{"content": {"parts": [{"text": text.upper()}]}}]}


def run(control: Control, answer: Answer, until: Callable[[], Awaitable[bool]]) -> None:
    async def scenario() -> None:
        running = asyncio.ensure_future(BatchRunner(control, answer, "tester").run())
        async with asyncio.timeout(20):
            while not await until():
                await asyncio.sleep(0.02)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    asyncio.run(scenario())


def ended(control: Control, name: ResourceName) -> Callable[[], Awaitable[bool]]:
    async def check() -> bool:
        is_ended = str(batch_predictions.get(control, member(control), name)["state"]) in ENDED
        return is_ended and not list((control.home / "runs").glob("batch-*"))

    return check


def predictions(control: Control, job: dict[str, Any]) -> list[dict[str, Any]]:
    uri = f"{job['outputInfo']['gcsOutputDirectory']}/predictions.jsonl"
    found = control.buckets.resolve(uri, project=member(control).project)
    return [orjson.loads(line) for line in control.buckets.path(found).read_bytes().splitlines()]


def test_rows_become_predictions_in_order(any_control: Control) -> None:
    texts = [f"r{i}" for i in range(40)]
    name = made(any_control, rows(*texts))
    run(any_control, echo, ended(any_control, name))
    job = batch_predictions.get(any_control, member(any_control), name)
    assert job["state"] == "JOB_STATE_SUCCEEDED" and job["startTime"] <= job["endTime"]
    assert job["completionStats"] == {"successfulCount": "40", "failedCount": "0", "incompleteCount": "0"}
    lines = predictions(any_control, job)
    assert [line["id"] for line in lines] == texts
    assert [line["response"]["candidates"][0]["content"]["parts"][0]["text"] for line in lines] == [
        text.upper() for text in texts
    ]


def test_rows_that_fail_say_why_and_the_others_go_on(control: Control) -> None:
    name = made(control, rows("a", "bad") + b"{broken\n[1]\n\n" + rows("b"))
    run(control, echo, ended(control, name))
    job = batch_predictions.get(control, member(control), name)
    assert job["state"] == "JOB_STATE_SUCCEEDED"
    assert job["completionStats"] == {"successfulCount": "2", "failedCount": "3", "incompleteCount": "0"}
    statuses = [line["status"] for line in predictions(control, job)]
    assert statuses[0] == statuses[4] == "" and "no such word" in statuses[1] and all(statuses[1:4])


def test_a_job_of_which_every_row_fails_has_failed(control: Control) -> None:
    name = made(control, rows("bad", "bad"))
    run(control, echo, ended(control, name))
    job = batch_predictions.get(control, member(control), name)
    assert job["state"] == "JOB_STATE_FAILED" and "no such word" in job["error"]["message"]


def test_a_running_job_is_cancelled_soon_and_a_waiting_one_at_once(control: Control) -> None:
    waiting = made(control, rows("a"))
    batch_predictions.cancel(control, member(control), waiting)
    assert batch_predictions.get(control, member(control), waiting)["state"] == "JOB_STATE_CANCELLED"
    name = made(control, rows("a"))

    async def never(deployed: ResolvedModel, request: dict[str, Any]) -> dict[str, Any]:
        await asyncio.to_thread(batch_predictions.cancel, control, member(control), name)
        await asyncio.Event().wait()
        return {}

    run(control, never, ended(control, name))
    job = batch_predictions.get(control, member(control), name)
    assert job["state"] == "JOB_STATE_CANCELLED" and job["error"]["code"] == 1
    batch_predictions.cancel(control, member(control), name)
    assert batch_predictions.get(control, member(control), name) == job


def test_what_a_cancelled_job_had_answered_is_stored(control: Control) -> None:
    name = made(control, rows("a", "b", "c", "last"))

    async def until_last(deployed: ResolvedModel, request: dict[str, Any]) -> dict[str, Any]:
        if request["contents"][0]["parts"][0]["text"] == "last":
            await asyncio.to_thread(batch_predictions.cancel, control, member(control), name)
            await asyncio.Event().wait()
        return await echo(deployed, request)

    run(control, until_last, ended(control, name))
    job = batch_predictions.get(control, member(control), name)
    assert job["state"] == "JOB_STATE_CANCELLED" and job["error"]["code"] == 1
    assert job["completionStats"] == {"successfulCount": "3", "failedCount": "0", "incompleteCount": "1"}
    assert [line["id"] for line in predictions(control, job)] == ["a", "b", "c"]


def test_the_service_agent_must_be_allowed_to_read_and_to_write(control: Control) -> None:
    name = made(control, rows("a"))
    project = projects.find(control.database, "demo")
    assert project is not None
    with control.database.transaction() as connection:
        agent = binding.c.member == f"serviceAccount:{project.agent}"
        connection.execute(binding.delete().where(agent, binding.c.role == "roles/storage.objectAdmin"))
    control.database.rights_changes += 1
    run(control, echo, ended(control, name))
    job = batch_predictions.get(control, member(control), name)
    assert job["state"] == "JOB_STATE_FAILED" and "outputInfo" not in job
    assert job["error"]["code"] == 7 and "Grant it: `sarto --project demo iam bind" in job["error"]["message"]
    with pytest.raises(PermissionDenied, match=r"may not read gs://batch/in\.jsonl"):
        batch_predictions.create(control, member(control), PARENT, body("gs://batch/in.jsonl"))
    with control.database.transaction() as connection:
        key = f"projects/{project.number}/buckets/batch"
        authorization.bind(connection, key, "roles/storage.objectViewer", f"serviceAccount:{project.agent}")
    control.database.rights_changes += 1
    with pytest.raises(PermissionDenied, match="may not write gs://batch/out"):
        batch_predictions.create(control, member(control), PARENT, body("gs://batch/in.jsonl"))


def test_a_dead_runners_job_goes_on_behind_its_last_whole_line(any_control: Control) -> None:
    name = made(any_control, rows(*(f"r{i}" for i in range(30))))
    asked: list[str] = []

    async def dies(deployed: ResolvedModel, request: dict[str, Any]) -> dict[str, Any]:
        asked.append(request["contents"][0]["parts"][0]["text"])
        if asked[-1] == "r20":
            await asyncio.Event().wait()
        return await echo(deployed, request)

    partial = any_control.home / "runs" / f"batch-{name.id}" / "predictions.jsonl"

    async def half_done() -> bool:
        return partial.exists() and partial.read_bytes().count(b"\n") == 20

    run(any_control, dies, half_done)
    with partial.open("ab") as file:
        file.write(b'{"torn')
    asked.clear()

    async def counted(deployed: ResolvedModel, request: dict[str, Any]) -> dict[str, Any]:
        asked.append(request["contents"][0]["parts"][0]["text"])
        return await echo(deployed, request)

    run(any_control, counted, ended(any_control, name))
    assert asked == [f"r{i}" for i in range(20, 30)]
    job = batch_predictions.get(any_control, member(any_control), name)
    assert [line["id"] for line in predictions(any_control, job)] == [f"r{i}" for i in range(30)]


def test_faults_of_a_request_are_listed(control: Control) -> None:
    uri = store(control, "in.jsonl", rows("a"))
    with pytest.raises(InvalidArgument) as caught:
        wrong = {"outputConfig": {"predictionsFormat": "csv", "gcsDestination": {"outputUriPrefix": "out"}}}
        batch_predictions.create(
            control, member(control), PARENT, body("gs://batch/none", "gs://batch/*", uri, **wrong)
        )
    assert [violation.field.removeprefix("batch_prediction_job.") for violation in caught.value.violations] == [
        "output_config.predictions_format",
        "input_config.gcs_source.uris[0]",
        "input_config.gcs_source.uris[1]",
        "output_config.gcs_destination.output_uri_prefix",
    ]
    with pytest.raises(Unimplemented, match="dedicated_resources"):
        batch_predictions.create(control, member(control), PARENT, body(uri, dedicatedResources={"machineSpec": {}}))


def test_list_filters_and_delete(control: Control) -> None:
    names = [made(control, rows("a")) for _ in range(3)]
    batch_predictions.cancel(control, member(control), names[0])
    page, token = batch_predictions.list_jobs(control, member(control), PARENT, 2, "", "")
    rest, end = batch_predictions.list_jobs(control, member(control), PARENT, 2, token, "")
    assert [one["name"] for one in page + rest] == [str(name) for name in reversed(names)] and end == ""
    chosen, _ = batch_predictions.list_jobs(
        control, member(control), PARENT, 0, "", 'state = "JOB_STATE_CANCELLED" AND displayName = "nightly"'
    )
    assert [one["name"] for one in chosen] == [str(names[0])]
    with pytest.raises(FailedPrecondition):
        batch_predictions.delete(control, member(control), names[1])
    assert batch_predictions.delete(control, member(control), names[0])["done"]
    assert len(batch_predictions.list_jobs(control, member(control), PARENT, 0, "", "")[0]) == 2


def test_jobs_of_two_projects_are_at_work_at_once_and_one_has_a_share(control: Control) -> None:
    created_in(control, "beta")
    held = [made(control, rows("wait")) for _ in range(4)]
    name = made_in(control, "beta", rows("a"))
    waiting = asyncio.Event()
    at_work: Counter[str] = Counter()

    async def answer(deployed: ResolvedModel, request: dict[str, Any]) -> dict[str, Any]:
        if request["contents"][0]["parts"][0]["text"] == "wait":
            at_work["demo"] += 1
            await waiting.wait()
        return await echo(deployed, request)

    async def other_ended() -> bool:
        has_share = at_work["demo"] >= MOST_IN_HAND
        state = batch_predictions.get(control, member(control, "beta"), name)["state"]
        return has_share and state == "JOB_STATE_SUCCEEDED"

    run(control, answer, other_ended)
    assert at_work["demo"] == MOST_IN_HAND
    states = [batch_predictions.get(control, member(control), one)["state"] for one in held]
    assert "JOB_STATE_SUCCEEDED" not in states


def test_a_row_that_is_too_long_fails_alone(control: Control) -> None:
    name = made(control, rows("a") + b"{" + b" " * (MOST_ROW_BYTES + 10) + b"}\n" + rows("b"))
    run(control, echo, ended(control, name))
    job = batch_predictions.get(control, member(control), name)
    statuses = [line["status"] for line in predictions(control, job)]
    assert statuses[0] == statuses[2] == "" and "more than 2,097,152 bytes" in statuses[1]


def test_files_are_bounded_in_number_and_size_and_named_once(control: Control) -> None:
    uri = store(control, "in.jsonl", rows("a"))
    for uris, words in (([uri, uri], "named twice"), ([f"{uri}{n}" for n in range(101)], "At most 100 files")):
        with pytest.raises(InvalidArgument, match=words):
            batch_predictions.create(control, member(control), PARENT, body(*uris))
    small = replace(control, limits=replace(control.limits, max_dataset_bytes=20))
    with pytest.raises(InvalidArgument, match="together"):
        batch_predictions.create(small, member(control), PARENT, body(uri))


def test_a_job_under_a_key_that_fails_quotes_no_row(control: Control) -> None:
    name = made(control, rows("bad"))
    with control.database.transaction() as connection:
        run_of = connection.execute(sa.select(table.c.run).where(table.c.id == name.id)).scalar_one()
        keyed = orjson.loads(run_of) | {"output_key": "projects/1/locations/us-central1/keyRings/r/cryptoKeys/k"}
        connection.execute(table.update().where(table.c.id == name.id).values(run=orjson.dumps(keyed).decode()))
    runner = BatchRunner(control, echo, "tester")
    with control.database.reading() as connection:
        row = connection.execute(sa.select(table).where(table.c.id == name.id)).one()
    status = runner.status_of(row, InvalidArgument("All 1 rows failed.\nThe first: no such word"))
    assert status["message"].startswith("All 1 rows failed.") and "no such word" not in status["message"]
