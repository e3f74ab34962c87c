"""The audit log of what the service does later for whoever asked: batch predictions, exports, evaluations, and a job
that its deadline ends; and the names of what was made."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from sarto.control import operations
from sarto.control.access import projects
from sarto.control.audit import chain
from sarto.control.audit.audit_log import AuditLog
from sarto.control.batches import batch_predictions
from sarto.control.context import Control
from sarto.control.evaluation import dataset_evaluations
from sarto.control.evaluation.evaluation_work import EvaluationWork
from sarto.control.executors.executor import clean_environment
from sarto.control.executors.local import LocalExecutor
from sarto.control.exports import export_model
from sarto.control.exports.export_work import ExportWork
from sarto.control.runs.operation_runner import OperationRunner, OperationWork
from sarto.control.runs.supervisor import Supervisor
from sarto.names import parse_resource
from sarto.schema.evaluation_requests import EvaluateDatasetRequest
from sarto.schema.models import ExportModelRequest
from sarto.storage.database.tables import dataset_evaluation, model_export
from tests.control.audit.test_audit import request
from tests.control.batches.test_batch_predictions import body, echo, ended, rows, run, store
from tests.control.homes import LIMITS, PARENT, create, make_control, member, state, wait_for_end, wait_until

PROGRAM = Path(__file__).with_name("stand_in_operation.py")
GET, CREATE = "storage.objects.get", "storage.objects.create"


@contextmanager
def logged(control: Control) -> Iterator[AuditLog]:
    log = AuditLog(control.database, data_access=False)
    log.start()
    try:
        yield log
    finally:
        log.stop()


def entries(control: Control, label: str) -> list[dict[str, Any]]:
    """Those of a request, or of a piece of work."""
    found = [json.loads(line) for line in chain.export(control.database)]
    return [entry["protoPayload"] for entry in found if entry["labels"]["request"] == label]


def acts(control: Control, work: str) -> set[tuple[str, str]]:
    """What was done in the work, each with what it was done to; all of it by the service agent, for ada."""
    project = projects.find(control.database, "demo")
    assert project is not None
    found = entries(control, work)
    assert found, f"no entry of {work}"
    for entry in found:
        who = entry["authenticationInfo"]
        assert who["principalEmail"] == project.agent, entry
        assert who["serviceAccountDelegationInfo"] == [{"principalSubject": "user:ada@demo.example"}], entry
        assert entry["status"] == {} and entry["authorizationInfo"][0]["granted"], entry
    return {(entry["methodName"].rpartition(".v1.")[2], entry["resourceName"]) for entry in found}


def objects(uri: str) -> str:
    bucket, _, name = uri.removeprefix("gs://").partition("/")
    return f"projects/_/buckets/{bucket}/objects/{name}"


@contextmanager
def runs(control: Control, table: sa.Table, work: OperationWork) -> Iterator[None]:
    """The loop behind operations, over a program of ours in place of the engine's."""
    (control.home / "logs").mkdir(exist_ok=True)
    executor = LocalExecutor(clean_environment(os.environ), (sys.executable, str(PROGRAM)))
    runner = OperationRunner(control, table, executor, work)
    runner.start()
    try:
        yield
    finally:
        runner.stop()


def done(control: Control, made: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}

    def is_done() -> bool:
        found.update(operations.get(control, member(control), made["name"]))
        return bool(found.get("done"))

    wait_until(is_done)
    assert "error" not in found, found["error"]
    return found


def test_what_a_batch_prediction_reads_and_writes_is_the_agent_s(any_control: Control) -> None:
    uri = store(any_control, "in.jsonl", rows("a"))
    with logged(any_control) as log:
        with request(log, "made"):
            made = batch_predictions.create(any_control, member(any_control), PARENT, body(uri))
        name = parse_resource(made["name"], "batchPredictionJobs")
        run(any_control, echo, ended(any_control, name))
    folder = batch_predictions.get(any_control, member(any_control), name)["outputInfo"]["gcsOutputDirectory"]
    found = acts(any_control, str(name))
    assert found == {(GET, objects(uri)), (CREATE, objects(f"{folder}/predictions.jsonl"))}
    [creation] = entries(any_control, "made")
    assert creation["resourceName"] == str(name)
    assert creation["methodName"] == "google.cloud.aiplatform.v1.JobService.CreateBatchPredictionJob"


def test_a_refused_one_has_the_refusal(control: Control) -> None:
    uri = store(control, "in.jsonl", rows("a"))
    with logged(control) as log:
        with request(log):
            made = batch_predictions.create(control, member(control), PARENT, body(uri))
        name = parse_resource(made["name"], "batchPredictionJobs")
        with control.database.transaction() as connection:
            connection.exec_driver_sql("delete from binding where role = 'roles/storage.objectAdmin'")
        control.database.rights_changes += 1
        run(control, echo, ended(control, name))
    assert batch_predictions.get(control, member(control), name)["state"] == "JOB_STATE_FAILED"
    [refusal] = [entry for entry in entries(control, str(name)) if entry["status"]]
    assert refusal["status"]["code"] == 7 and refusal["resourceName"] == objects(uri)
    assert refusal["authorizationInfo"] == [{"permission": GET, "granted": False}]


def test_what_an_export_writes_is_the_agent_s(control: Control, supervise: Callable[[Control], Supervisor]) -> None:
    supervise(control)
    model = wait_for_end(control, create(control))["tunedModel"]["model"].partition("@")[0]
    to = {"exportFormatId": "adapter", "artifactDestination": {"outputUriPrefix": "gs://data/exported"}}
    with logged(control) as log, runs(control, model_export, ExportWork(control, [b"{}"])):
        with request(log, "asked"):
            asked = ExportModelRequest.read({"outputConfig": to})
            made = export_model.export(control, member(control), parse_resource(model, "models"), asked)
        done(control, made)
    folder = made["metadata"]["outputInfo"]["artifactOutputUri"]
    work = f"operations/{made['name'].rpartition('/')[2]}"
    assert acts(control, work) == {(CREATE, objects(f"{folder}/model.bin"))}
    assert "ModelService.ExportModel" in {
        entry["methodName"].rpartition(".v1.")[2] for entry in entries(control, "asked")
    }


def test_what_an_evaluation_of_a_dataset_reads_and_writes_is_the_agent_s(control: Control) -> None:
    asked = EvaluateDatasetRequest.read(
        {
            "dataset": {"gcsSource": {"uris": ["gs://data/train.jsonl"]}},
            "metrics": [{"exactMatchSpec": {}}],
            "outputConfig": {"gcsDestination": {"outputUriPrefix": "gs://data/scores"}},
        }
    )
    with logged(control) as log, runs(control, dataset_evaluation, EvaluationWork(control, lambda _, request: request)):
        with request(log, "asked"):
            made = dataset_evaluations.evaluate(control, member(control), PARENT, asked)
        folder = done(control, made)["response"]["outputInfo"]["gcsOutputDirectory"]
    work = f"operations/{made['name'].rpartition('/')[2]}"
    assert acts(control, work) == {(GET, objects("gs://data/train.jsonl")), (CREATE, objects(f"{folder}/summary.json"))}
    [creation] = [entry for entry in entries(control, "asked") if "valuat" in entry["methodName"]]
    assert creation["authenticationInfo"]["principalEmail"] == "ada@demo.example"


@pytest.fixture
def hasty(tmp_path: Path) -> Iterator[Control]:
    """A server whose jobs may take a second."""
    made = make_control(tmp_path / "hasty", limits=replace(LIMITS, max_job_seconds=1.0))
    yield made
    made.sealer.private.close()
    made.database.close()


def test_a_job_that_its_deadline_ends_has_the_end_as_the_agent_s(
    hasty: Control, supervise: Callable[[Control], Supervisor]
) -> None:
    with logged(hasty) as log:
        with request(log, "made"):
            name = create(hasty, "slow")
        supervise(hasty)
        wait_until(lambda: state(hasty, name) == "FAILED")
    assert ("GenAiTuningService.CancelTuningJob", str(name)) in acts(hasty, str(name))
    creations = [entry for entry in entries(hasty, "made") if entry["methodName"].endswith("CreateTuningJob")]
    assert [entry["resourceName"] for entry in creations] == [str(name)]
