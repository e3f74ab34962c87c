"""Whoever reads an object for a job reads the version that was there when the job was made."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sarto.control import retention
from sarto.control.batches import batch_predictions
from sarto.control.context import Control
from sarto.control.evaluation import dataset_evaluations
from sarto.control.evaluation.evaluation_work import EvaluationWork
from sarto.control.jobs import rebase
from sarto.control.models.resolution import ResolvedModel
from sarto.control.runs.supervisor import Supervisor
from sarto.errors import FailedPrecondition, InvalidArgument, Unavailable
from sarto.names import ResourceName, parse_resource
from sarto.schema.evaluation_requests import EvaluateDatasetRequest
from sarto.schema.tuning_jobs import RebaseTunedModelRequest
from sarto.storage.buckets.store import ObjectFields
from sarto.storage.database.tables import dataset_evaluation, held_object
from tests.control.batches.test_batch_predictions import body, echo, ended, made, predictions, rows, run, store
from tests.control.homes import PARENT, ROWS, create, evaluation_run, member, read, wait_for_end

Supervise = Callable[[Control], Supervisor]


def variant(number: int) -> bytes:
    return ROWS.replace(b"answer", f"answer of set {number},".encode())


def learned(control: Control, name: ResourceName, part: str = "training") -> bytes:
    """What lies in the job's folder as its data."""
    return (control.job_folder(name.id) / "data" / f"{part}.jsonl").read_bytes()


def forget_holds(control: Control) -> None:
    """As in a database whose jobs were made before versions were held."""
    with control.database.transaction() as connection:
        connection.execute(held_object.delete())


def held(control: Control) -> int:
    with control.database.reading() as connection:
        return len(connection.execute(held_object.select()).all())


def test_each_waiting_job_learns_the_file_as_it_was_when_the_job_was_made(
    any_control: Control, supervise: Supervise
) -> None:
    control, names = any_control, []
    for number in range(3):
        control.buckets.put_bytes("data", "sweep.jsonl", variant(number))
        control.buckets.put_bytes("data", "check.jsonl", variant(10 + number))
        names.append(create(control, "sweep", spec={"validationDatasetUri": "gs://data/check.jsonl"}))
        retention.collect(control)
    control.buckets.delete("data", "sweep.jsonl")
    retention.collect(control)
    supervise(control)
    for number, name in enumerate(names):
        job = wait_for_end(control, name)
        assert job["state"] == "JOB_STATE_SUCCEEDED", job
        assert learned(control, name) == variant(number)
        assert learned(control, name, "validation") == variant(10 + number)


def test_a_job_says_which_version_it_learns_from_from_its_first_answer_to_its_end(
    control: Control, supervise: Supervise
) -> None:
    found = control.buckets.stat("data", "train.jsonl")
    name = create(control)
    version = {"uri": found.uri, "generation": str(found.generation), "md5Hash": found.md5}
    assert read(control, name)["tuningJobMetadata"] == {"datasets": [version]}
    supervise(control)
    assert wait_for_end(control, name)["tuningJobMetadata"]["datasets"] == [version]


def test_bytes_are_kept_for_a_job_until_it_has_ended(control: Control, supervise: Supervise) -> None:
    control.buckets.put_bytes("data", "once.jsonl", variant(1))
    content = control.buckets.path(control.buckets.stat("data", "once.jsonl"))
    name = create(control, "once")
    control.buckets.delete("data", "once.jsonl")
    retention.collect(control)
    assert content.exists() and held(control) == 1
    supervise(control)
    wait_for_end(control, name)
    retention.collect(control)
    assert not content.exists() and held(control) == 0


def test_a_job_made_before_versions_were_held_learns_what_it_finds(control: Control, supervise: Supervise) -> None:
    name, vanished = create(control), create(control, "slow")
    forget_holds(control)
    control.buckets.put_bytes("data", "train.jsonl", variant(7))
    control.buckets.delete("data", "slow.jsonl")
    supervise(control)
    assert wait_for_end(control, name)["state"] == "JOB_STATE_SUCCEEDED"
    assert learned(control, name) == variant(7)
    job = wait_for_end(control, vanished)
    assert job["error"]["code"] == 5 and "slow.jsonl" in job["error"]["message"]


def test_a_file_replaced_while_its_job_is_made_is_refused(control: Control) -> None:
    looked_at = control.buckets.stat("data", "train.jsonl")
    for name in ("train", "slow", "die-once", "die", "fault", "deaf", "raise", "hangs"):
        control.buckets.put_bytes("data", f"{name}.jsonl", variant(3))
    project = member(control).project
    with pytest.raises(Unavailable, match="replaced"), control.database.transaction() as connection:
        control.buckets.hold(connection, project, "1", [looked_at])
    assert held(control) == 0


def test_a_batch_answers_the_rows_it_was_made_for_after_a_dead_runner_too(any_control: Control) -> None:
    control, texts = any_control, [f"r{i}" for i in range(30)]
    name = made(control, rows(*texts))
    control.buckets.put_bytes("batch", "in.jsonl", rows("other"))
    retention.collect(control)

    async def dies(deployed: ResolvedModel, request: dict[str, Any]) -> dict[str, Any]:
        if request["contents"][0]["parts"][0]["text"] == "r20":
            await asyncio.Event().wait()
        return await echo(deployed, request)

    partial = control.home / "runs" / f"batch-{name.id}" / "predictions.jsonl"

    async def half_done() -> bool:
        return partial.exists() and partial.read_bytes().count(b"\n") == 20

    run(control, dies, half_done)
    control.buckets.delete("batch", "in.jsonl")
    run(control, echo, ended(control, name))
    job = batch_predictions.get(control, member(control), name)
    assert [line["id"] for line in predictions(control, job)] == texts
    retention.collect(control)
    assert held(control) == 0


def test_a_dataset_is_evaluated_as_it_was_when_that_was_asked_for(control: Control, tmp_path: Path) -> None:
    uri = store(control, "rows.jsonl", b'{"prompt": "a", "response": "b", "reference": "b"}\n')
    asked = {
        "dataset": {"gcsSource": {"uris": [uri]}},
        "metrics": [{"exactMatchSpec": {}}],
        "outputConfig": {"gcsDestination": {"outputUriPrefix": "gs://batch/out"}},
    }
    operation = dataset_evaluations.evaluate(control, member(control), PARENT, EvaluateDatasetRequest.read(asked))
    control.buckets.put_bytes("batch", "rows.jsonl", b"other\n")
    retention.collect(control)
    folder = tmp_path / f"evaluation-{operation['name'].rpartition('/')[2]}"
    folder.mkdir()
    work = EvaluationWork(control, lambda deployed, request: {})
    places = control.places_of(folder, folder)
    spec = work.spec(member(control).project, evaluation_run(uri, "gs://batch/out"), folder, places)
    assert places.path(spec.rows).read_bytes().startswith(b'{"prompt": "a"')
    with control.database.transaction() as connection:
        connection.execute(dataset_evaluation.delete())
    retention.collect(control)
    assert held(control) == 0


def test_data_that_was_replaced_is_not_taken_for_the_data_of_an_earlier_job(
    control: Control, supervise: Supervise
) -> None:
    supervise(control)
    name = create(control)
    wait_for_end(control, name)
    request = RebaseTunedModelRequest.read({"tunedModelRef": {"tuningJob": str(name)}})
    control.buckets.put_bytes("data", "train.jsonl", variant(5))
    with pytest.raises(FailedPrecondition, match=r"gs://data/train\.jsonl was replaced since"):
        rebase.rebase(control, member(control), PARENT, request)
    control.buckets.put_bytes("data", "train.jsonl", ROWS)
    assert rebase.rebase(control, member(control), PARENT, request)["done"]


def packed(control: Control, bucket: str, name: str, data: bytes) -> str:
    with control.buckets.spool(bucket) as spool:
        spool.write(data)
        return control.buckets.store(bucket, name, spool.finish(), ObjectFields(content_encoding="gzip")).uri


def test_a_file_stored_with_gzip_as_its_encoding_is_learned_unpacked(control: Control, supervise: Supervise) -> None:
    packed(control, "data", "packed.jsonl", gzip.compress(ROWS))
    supervise(control)
    name = create(control, "packed")
    assert wait_for_end(control, name)["state"] == "JOB_STATE_SUCCEEDED"
    assert learned(control, name) == ROWS


def test_a_batch_reads_rows_stored_with_gzip(control: Control) -> None:
    store(control, "in.jsonl", b"")
    uri = packed(control, "batch", "packed.jsonl", gzip.compress(rows("a", "b")))
    name = parse_resource(
        batch_predictions.create(control, member(control), PARENT, body(uri))["name"], "batchPredictionJobs"
    )
    run(control, echo, ended(control, name))
    job = batch_predictions.get(control, member(control), name)
    assert [line["id"] for line in predictions(control, job)] == ["a", "b"]


@pytest.mark.parametrize("data", [b"no gzip at all", gzip.compress(ROWS)[:-20], gzip.compress(b"\0" * 3_000_000)])
def test_a_broken_or_boundless_gzip_is_refused(control: Control, data: bytes) -> None:
    small = replace(control, limits=replace(control.limits, max_dataset_bytes=500_000))
    packed(control, "data", "packed.jsonl", data)
    with pytest.raises(InvalidArgument, match=r"cannot be unpacked|more decompressed bytes"):
        create(small, "packed")
