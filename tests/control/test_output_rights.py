"""What work writes in place of another's object: its maker and the service agent both must be allowed to delete that.
Role by bucket, for batch predictions, evaluations of datasets and those of tuning jobs."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import pytest

from sarto.contract.evaluation_run import EvaluationResult
from sarto.contract.tuning_run import Assessment
from sarto.control.access import authorization, projects
from sarto.control.access.principal import Principal
from sarto.control.batches import batch_predictions
from sarto.control.context import Control
from sarto.control.evaluation import dataset_evaluations
from sarto.control.evaluation.dataset_evaluations import EvaluationRun
from sarto.control.evaluation.evaluation_work import EvaluationWork
from sarto.control.jobs import tuning_jobs
from sarto.control.runs import evaluations
from sarto.control.runs.workspace import Workspace
from sarto.control.scheduling import leases
from sarto.errors import PermissionDenied
from sarto.names import parse_resource
from sarto.schema.batch_predictions import BatchPredictionJob
from sarto.schema.evaluation_requests import EvaluateDatasetRequest
from sarto.schema.tuning_jobs import TuningJob
from sarto.storage.database.tables import batch_prediction_job, binding, dataset_evaluation
from tests.control.batches.test_batch_predictions import echo, ended, rows, run
from tests.control.homes import PARENT, job_body, member

CREATOR, ADMIN = "roles/storage.objectCreator", "roles/storage.objectAdmin"
CASES = list(product((CREATOR, ADMIN), repeat=2))
"""On the bucket of the output: of who makes the work, and of the service agent as which it runs."""
OUT = {"gcsDestination": {"outputUriPrefix": "gs://out/to"}}
THEIRS = b"of another"


@pytest.fixture
def place(control: Control) -> Control:
    control.buckets.create_bucket(member(control).project, "out")
    control.buckets.put_bytes("data", "requests.jsonl", rows("a"))
    return control


def maker(control: Control, of_maker: str, of_agent: str) -> Principal:
    """Who makes the work; both have their roles on the bucket of the output and may read the data."""
    project = projects.find(control.database, "demo")
    assert project is not None
    who = Principal(f"{of_maker}-{of_agent}".replace("/", "."), "", "user")
    agent = f"serviceAccount:{project.agent}"
    number = f"projects/{project.number}"
    given = [(number, "roles/aiplatform.user", who.member), (f"{number}/buckets/out", of_maker, who.member)]
    given += [(f"{number}/buckets/data", "roles/storage.objectViewer", one) for one in (who.member, agent)]
    with control.database.transaction() as connection:
        of_storage = (binding.c.member == agent) & binding.c.role.startswith("roles/storage.")
        connection.execute(binding.delete().where(of_storage))
        for resource, role, whom in [*given, (f"{number}/buckets/out", of_agent, agent)]:
            authorization.bind(connection, resource, role, whom)
    control.database.rights_changes += 1
    return who


@pytest.mark.parametrize(("of_maker", "of_agent"), CASES)
def test_a_batch_prediction_replaces_what_both_may_delete(place: Control, of_maker: str, of_agent: str) -> None:
    job = BatchPredictionJob.read(
        {
            "displayName": "b",
            "model": "publishers/google/models/gemini-2.5-flash",
            "inputConfig": {"instancesFormat": "jsonl", "gcsSource": {"uris": ["gs://data/requests.jsonl"]}},
            "outputConfig": {"predictionsFormat": "jsonl", **OUT},
        }
    )
    made = batch_predictions.create(place, maker(place, of_maker, of_agent), PARENT, job)
    name = parse_resource(made["name"], "batchPredictionJobs")
    other = parse_resource(
        batch_predictions.create(place, maker(place, of_maker, of_agent), PARENT, job)["name"], "batchPredictionJobs"
    )
    with place.database.reading() as connection:
        where = batch_prediction_job.c.id == name.id
        row = connection.execute(batch_prediction_job.select().where(where)).one()
    target = f"{batch_predictions.output_folder(job, row.create_time)}/predictions.jsonl".removeprefix("gs://out/")
    place.buckets.put_bytes("out", target, THEIRS)
    run(place, echo, ended(place, name))
    run(place, echo, ended(place, other))
    found, ended_job = content(place, target), batch_predictions.get(place, member(place), name)
    if (of_maker, of_agent) == (ADMIN, ADMIN):
        assert ended_job["state"] == "JOB_STATE_SUCCEEDED" and b'"id":"a"' in found
    else:
        assert ended_job["state"] == "JOB_STATE_FAILED" and found == THEIRS and "outputInfo" not in ended_job
        assert "storage.objects.delete is needed on bucket out" in ended_job["error"]["message"]
    free = batch_predictions.get(place, member(place), other)
    assert free["state"] == "JOB_STATE_SUCCEEDED", "nothing was in its way"


@pytest.mark.parametrize(("of_maker", "of_agent"), CASES)
def test_an_evaluation_of_a_dataset_does_too(place: Control, of_maker: str, of_agent: str) -> None:
    asked: dict[str, Any] = {
        "dataset": {"gcsSource": {"uris": ["gs://data/train.jsonl"]}},
        "metrics": [{"exactMatchSpec": {}}],
        "outputConfig": OUT,
    }
    who = maker(place, of_maker, of_agent)
    dataset_evaluations.evaluate(place, who, PARENT, EvaluateDatasetRequest.read(asked))
    with place.database.reading() as connection:
        row = connection.execute(dataset_evaluation.select()).one()
    run = EvaluationRun.model_validate_json(row.run)
    folder = place.home / "evaluation-1"
    results(folder / "out")
    target = f"{run.output}/results/one.json".removeprefix("gs://out/")
    place.buckets.put_bytes("out", target, THEIRS)
    work = EvaluationWork(place, lambda deployed, request: request)
    result = EvaluationResult(rows=1, left_out=0, runs={}).model_dump_json().encode()
    with (
        work.publish(row.project, run, folder, result) as made,
        place.database.transaction() as connection,
    ):
        if (of_maker, of_agent) == (ADMIN, ADMIN):
            made.name_files(connection)
        else:
            with pytest.raises(PermissionDenied, match=r"storage\.objects\.delete is needed on bucket out"):
                made.name_files(connection)
    assert (content(place, target) == THEIRS) == ((of_maker, of_agent) != (ADMIN, ADMIN))


@pytest.mark.parametrize(("of_maker", "of_agent"), CASES)
def test_the_evaluation_of_a_tuning_job_does_too(place: Control, of_maker: str, of_agent: str) -> None:
    config = {"metrics": [{"aggregationMetrics": ["AVERAGE"], "exactMatchSpec": {}}], "outputConfig": OUT}
    spec = {"validationDatasetUri": "gs://data/train.jsonl", "evaluationConfig": config}
    job = TuningJob.read(job_body(spec=spec), "tuning_job")
    name = parse_resource(
        tuning_jobs.create(place, maker(place, of_maker, of_agent), PARENT, job)["name"], "tuningJobs"
    )
    lease = leases.claim(place.database, "me", place.limits)
    assert lease is not None
    folder = f"gs://out/to/{name.id}/1"
    results(place.job_folder(name.id) / "resume" / "evaluation" / "1")
    target = f"to/{name.id}/1/results/one.json"
    place.buckets.put_bytes("out", target, THEIRS)
    run_of = {"checkpointId": "1", "evaluateDatasetResponse": {"outputInfo": {"gcsOutputDirectory": folder}}}
    workplace = Workspace(place, lease, "")
    for _ in range(2):  # a second time as after a loss: what it wrote itself is in nobody's way
        evaluations.publish(place, lease, Assessment(checkpoint_id="1", folder="1", run=run_of), workplace)
        [seen] = tuning_jobs.get(place, member(place), name)["evaluateDatasetRuns"]
        if (of_maker, of_agent) == (ADMIN, ADMIN):
            assert content(place, target) == b"{}" and "error" not in seen
        else:
            assert "storage.objects.delete is needed" in seen["error"]["message"] and content(place, target) == THEIRS


def results(folder: Path) -> None:
    (folder / "results").mkdir(parents=True)
    (folder / "results" / "one.json").write_text("{}")


def content(control: Control, name: str) -> bytes:
    return control.buckets.path(control.buckets.stat("out", name)).read_bytes()
