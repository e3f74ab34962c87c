"""Who may touch which object: role by bucket by every field that quotes data, and what one writes over another's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import orjson
import pytest

from sarto.contract.export_run import ExportResult
from sarto.contract.run_folder import REPORT_FILE
from sarto.control import dataset_queries, operations
from sarto.control.access import authorization, projects, quoting, run_identity
from sarto.control.access.principal import Principal
from sarto.control.batches import batch_predictions
from sarto.control.context import Control
from sarto.control.dataset_queries import DatasetCheck
from sarto.control.evaluation import dataset_evaluations, job_report
from sarto.control.evaluation.evaluation_work import EvaluationWork
from sarto.control.exports.export_work import ExportWork
from sarto.control.jobs import events, tuning_jobs
from sarto.control.models import model_bucket
from sarto.control.runs.supervisor import Supervisor
from sarto.errors import InvalidArgument, PermissionDenied, SartoError
from sarto.names import ResourceName
from sarto.schema.batch_predictions import BatchPredictionJob
from sarto.schema.evaluation_requests import EvaluateDatasetRequest
from sarto.schema.tuning_jobs import TuningJob
from sarto.storage.database.tables import batch_prediction_job, binding, operation, tuning_job
from tests.control.homes import (
    PARENT,
    ROWS,
    add_project,
    create,
    evaluation_run,
    export_run,
    job_body,
    member,
    wait_for_end,
)

ROLES = ("roles/owner", "roles/aiplatform.admin", "roles/aiplatform.user", "roles/aiplatform.viewer")
STORAGE = ("", "roles/storage.objectViewer", "roles/storage.objectCreator", "roles/storage.objectAdmin")
READERS = ("roles/storage.objectViewer", "roles/storage.objectAdmin")
QUOTE = "CANARY-IN-A-ROW"
OPERATION = f"{PARENT}/operations/1"
CHECK = {"baseModel": "gemini-2.0-flash-001", "trainingDatasetUri": "gs://secret/train.jsonl"}
EVALUATION = {
    "dataset": {"gcsSource": {"uris": ["gs://secret/train.jsonl"]}},
    "metrics": [{"exactMatchSpec": {}}],
    "outputConfig": {"gcsDestination": {"outputUriPrefix": "gs://secret/out"}},
}


def someone(control: Control, role: str, on_bucket: str = "", bucket: str = "secret") -> Principal:
    found = projects.find(control.database, "demo")
    assert found is not None
    who = Principal(f"{role}-{on_bucket}-{bucket}".replace("/", "."), "", "user")
    with control.database.transaction() as connection:
        authorization.bind(connection, f"projects/{found.number}", role, who.member)
        if on_bucket:
            authorization.bind(connection, f"projects/{found.number}/buckets/{bucket}", on_bucket, who.member)
    control.database.rights_changes += 1
    return who


@pytest.fixture
def quoted(control: Control) -> ResourceName:
    """A job on a bucket of its own whose every field that may quote the data does."""
    number = member(control).project
    control.buckets.create_bucket(number, "secret")
    control.buckets.put_bytes("secret", "train.jsonl", ROWS)
    name = create(control, "gs://secret/train.jsonl")
    fault = {"code": 3, "message": f"1 of 2 rows cannot be used\n  line 1: {QUOTE}"}
    stats = {
        "userDatasetExamples": [{"parts": [{"text": QUOTE}]}],
        "droppedExampleReasons": [QUOTE],
        "tuningStepCount": "4",
    }
    with control.database.transaction() as connection:
        row = tuning_jobs.find(connection, number, name)
        resource = orjson.loads(row.resource) | {
            "tuningDataStats": {"supervisedTuningDataStats": stats},
            "error": fault,
            "evaluateDatasetRuns": [{"checkpointId": "1", "error": {"code": 3, "message": QUOTE}}],
        }
        connection.execute(tuning_job.update().values(resource=orjson.dumps(resource).decode()))
        events.record(connection, row.project, row.id, 1, 1.0, "note", f"A row was dropped: {QUOTE}")
        fails = {"error": {"code": 3, "message": f"No row can be evaluated: {QUOTE}"}}
        about = replace(PARENT, project=number)
        facts = {"dataset": EVALUATION["dataset"], "modelResults": {"m": {"error": {"code": 3, "message": QUOTE}}}}
        begun = operations.begin(connection, about, "", "EvaluateDatasetOperationMetadata", facts, 1.0)
        identifier = begun["name"].rpartition("/")[2]
        operations.finish(connection, number, identifier, fails)
        connection.execute(operation.update().where(operation.c.id == identifier).values(id="1"))
    folder = control.job_folder(name.id)
    (folder / "1").mkdir(parents=True)
    (folder / "1" / REPORT_FILE).write_text(f'{{"rows": "{QUOTE}"}}')
    return name


def seen(control: Control, who: Principal, name: ResourceName) -> dict[str, str]:
    """Whatever shows the job or reads its data, by how it is asked for; a refusal by its name."""
    asked = EvaluateDatasetRequest.read(EVALUATION)
    ways: dict[str, Callable[[], Any]] = {
        "get": lambda: tuning_jobs.get(control, who, name),
        "list": lambda: tuning_jobs.list_jobs(control, who, PARENT),
        "events": lambda: events.list_events(control, who, name),
        "dataReport": lambda: dataset_queries.job_report(control, who, name),
        "showExample": lambda: dataset_queries.job_question(control, who, name, 1),
        "evaluation": lambda: job_report.report(control, who, name),
        "checkDataset": lambda: dataset_queries.question(control, who, PARENT, DatasetCheck.read(CHECK)).close(),
        "evaluateDataset": lambda: dataset_evaluations.evaluate(control, who, PARENT, asked),
        "operation": lambda: operations.get(control, who, OPERATION),
        "operations": lambda: operations.list_operations(control, who, str(PARENT)),
    }
    found = {}
    for way, ask in ways.items():
        try:
            found[way] = repr(ask())
        except SartoError as error:
            found[way] = f"{type(error).__name__} {error.message}"
    return found


def test_only_who_may_read_a_dataset_sees_what_quotes_it(control: Control, quoted: ResourceName) -> None:
    for role in ROLES:
        for on_bucket in STORAGE:
            who = someone(control, role, on_bucket)
            may = role == "roles/owner" or on_bucket in READERS
            found = seen(control, who, quoted)
            for way in ("get", "list", "events", "dataReport", "operation", "operations"):
                assert (QUOTE in found[way]) == may, (role, on_bucket, way, found[way])
            for way in ("dataReport", "showExample", "evaluation"):
                assert found[way].startswith("PermissionDenied") != may, (role, on_bucket, way, found[way])
            for way in ("checkDataset", "evaluateDataset"):
                refused = "PermissionDenied" if role.endswith("viewer") else "may not read gs://secret/train.jsonl"
                assert (refused in found[way]) == (role.endswith("viewer") or not may), (role, on_bucket, found[way])
            job = tuning_jobs.get(control, who, quoted)
            assert job["tuningDataStats"]["supervisedTuningDataStats"]["tuningStepCount"] == "4"
            assert job["error"]["message"].startswith("1 of 2 rows cannot be used")
    assert QUOTE not in repr(quoting.without_quotes(tuning_jobs.get(control, member(control), quoted)))


def test_a_caller_needs_the_rights_that_the_job_uses(control: Control, quoted: ResourceName) -> None:
    job = TuningJob.read(job_body("gs://secret/train.jsonl"), "tuning_job")
    for on_bucket in STORAGE:
        who = someone(control, "roles/aiplatform.user", on_bucket)
        if on_bucket in READERS:
            tuning_jobs.create(control, who, PARENT, job)
        else:
            with pytest.raises(PermissionDenied, match=r"may not read gs://secret/train\.jsonl.*Grant it"):
                tuning_jobs.create(control, who, PARENT, job)
    by_google = replace(control, limits=replace(control.limits, data_rights="agent"))
    tuning_jobs.create(by_google, someone(control, "roles/aiplatform.user"), PARENT, job)


def test_a_refused_job_quotes_its_data_to_readers_alone(control: Control, quoted: ResourceName) -> None:
    row = {"contents": [{"role": QUOTE, "parts": [{"text": "a"}]}]}
    control.buckets.put_bytes("secret", "wrong.jsonl", orjson.dumps(row))
    body = job_body("gs://secret/wrong.jsonl", tunedModelDisplayName="x" * 300)  # wrong before rights are asked
    job = TuningJob.read(body, "tuning_job")
    for on_bucket in STORAGE:
        with pytest.raises(InvalidArgument) as refused:
            tuning_jobs.create(control, someone(control, "roles/aiplatform.user", on_bucket), PARENT, job)
        assert "training_dataset_uri" in repr(refused.value.violations)
        assert (QUOTE in repr(refused.value.violations)) == (on_bucket in READERS), on_bucket


def test_where_the_bucket_is_gone_quotes_are_for_who_may_read_the_whole_project(
    control: Control, quoted: ResourceName
) -> None:
    reader = someone(control, "roles/aiplatform.user", "roles/storage.objectViewer")
    assert QUOTE in seen(control, reader, quoted)["get"]
    control.buckets.delete("secret", "train.jsonl")
    control.buckets.delete_bucket("secret")
    found = seen(control, reader, quoted)
    assert not [way for way, words in found.items() if QUOTE in words], found
    assert QUOTE in seen(control, member(control), quoted)["dataReport"]


def test_an_export_names_its_files_with_the_operations_end_and_replaces_none_of_others(control: Control) -> None:
    number = member(control).project
    folder = control.home / "export"
    (folder / "files").mkdir(parents=True)
    (folder / "files" / "model.bin").write_bytes(b"weights")
    result = ExportResult(files=["model.bin"]).model_dump_json().encode()
    run = export_run("out", may_replace=False)
    work = ExportWork(control, [])
    with work.publish(number, run, folder, result):
        pass  # its process is lost before the operation has ended
    assert not control.buckets.list("data", "out/").objects
    with work.publish(number, run, folder, result) as made, control.database.transaction() as connection:
        made.name_files(connection)
    assert [one.name for one in control.buckets.list("data", "out/").objects] == ["out/model.bin"]
    with (
        pytest.raises(PermissionDenied, match=r"storage\.objects\.delete"),
        work.publish(number, run, folder, result) as made,
        control.database.transaction() as connection,
    ):
        made.name_files(connection)


def test_what_an_operation_holds_is_read_only_while_the_agent_may(control: Control, quoted: ResourceName) -> None:
    number = member(control).project
    made = dataset_evaluations.evaluate(control, member(control), PARENT, EvaluateDatasetRequest.read(EVALUATION))
    folder = control.home / f"evaluation-{made['name'].rpartition('/')[2]}"
    folder.mkdir()
    run = evaluation_run("gs://secret/train.jsonl", "gs://secret/out")
    work, places = EvaluationWork(control, lambda deployed, request: request), control.places_of(folder, folder)
    assert places.path(work.spec(number, run, folder, places).rows) == folder / "rows.jsonl"
    with control.database.transaction() as connection:
        connection.execute(binding.delete().where(binding.c.role == "roles/storage.objectAdmin"))
    control.database.rights_changes += 1
    (folder / "rows.jsonl").unlink()
    with pytest.raises(PermissionDenied, match="may not read gs://secret"):
        work.spec(number, run, folder, places)
    assert not (folder / "rows.jsonl").exists()


def test_a_job_that_could_not_replace_what_lies_at_its_output_is_refused_when_it_is_made(control: Control) -> None:
    number = member(control).project
    control.buckets.create_bucket(number, "secret")
    control.buckets.put_bytes("secret", "train.jsonl", ROWS)
    there = "out/postprocess/node-0/checkpoints/checkpoint-1/adapter_model.safetensors"
    for role, may in (("roles/storage.objectCreator", False), ("roles/storage.objectAdmin", True)):
        who = someone(control, "roles/aiplatform.user", role)
        control.buckets.put_bytes("secret", there, b"of another")
        assert run_identity.may_replace(control, number, "gs://secret/new", "", who) == may
        if may:
            assert run_identity.may_replace(control, number, "gs://secret/out", "", who)
        else:
            with pytest.raises(PermissionDenied, match=r"may not replace them.*Write to another folder, or grant it"):
                run_identity.may_replace(control, number, "gs://secret/out", "", who)


def test_a_batch_prediction_copies_nothing_for_who_may_not_read_it(control: Control, quoted: ResourceName) -> None:
    control.buckets.put_bytes("secret", "requests.jsonl", b"{}\n")
    body = {
        "displayName": "b",
        "model": "publishers/google/models/gemini-2.5-flash",
        "inputConfig": {"instancesFormat": "jsonl", "gcsSource": {"uris": ["gs://secret/requests.jsonl"]}},
        "outputConfig": {"predictionsFormat": "jsonl", "gcsDestination": {"outputUriPrefix": "gs://data/out"}},
    }
    job = BatchPredictionJob.read(body, "batch_prediction_job")
    nobody = someone(control, "roles/aiplatform.user")
    with pytest.raises(PermissionDenied, match=r"may not read gs://secret/requests\.jsonl"):
        batch_predictions.create(control, nobody, PARENT, job)
    reader = someone(control, "roles/aiplatform.user", "roles/storage.objectViewer")
    with pytest.raises(PermissionDenied, match="may not write gs://data/out"):
        batch_predictions.create(control, reader, PARENT, job)
    made = batch_predictions.create(control, member(control), PARENT, job)
    with control.database.transaction() as connection:
        error = {"code": 3, "message": f"All 1 rows failed; the first: {QUOTE}"}
        connection.execute(
            batch_prediction_job.update().values(resource=orjson.dumps(made | {"error": error}).decode())
        )
    name = ResourceName("demo", "us-central1", "batchPredictionJobs", made["name"].rpartition("/")[2])
    for who, may in ((nobody, False), (reader, True)):
        assert (QUOTE in repr(batch_predictions.get(control, who, name))) == may
        assert (QUOTE in repr(batch_predictions.list_jobs(control, who, PARENT, 10, "", ""))) == may


def test_a_model_of_others_is_tuned_further_by_who_may_export_it(
    control: Control, supervise: Callable[[Control], Supervisor]
) -> None:
    stranger = add_project(control, "other")
    supervise(control)
    model = wait_for_end(control, create(control))["tunedModel"]["model"]
    number, _, on = model.partition("@")[0].removeprefix("projects/").partition("/")
    body = job_body("gs://data-other/train.jsonl", preTunedModel={"tunedModelName": model})
    job = TuningJob.read({key: value for key, value in body.items() if key != "baseModel"}, "tuning_job")
    with control.database.transaction() as connection:
        authorization.bind(
            connection, f"projects/{number}/{on}", "roles/aiplatform.user", stranger.member
        )  # it may be asked
    control.database.rights_changes += 1
    with pytest.raises(InvalidArgument, match=r"aiplatform\.models\.export"):
        tuning_jobs.create(control, stranger, replace(PARENT, project="other"), job)
    with control.database.transaction() as connection:
        authorization.bind(connection, f"projects/{number}", "roles/aiplatform.user", stranger.member)
    control.database.rights_changes += 1
    tuning_jobs.create(control, stranger, replace(PARENT, project="other"), job)


def test_the_bucket_of_models_is_the_projects_own_whoever_took_its_name(
    control: Control, supervise: Callable[[Control], Supervisor]
) -> None:
    stranger = add_project(control, "other")
    control.buckets.create_bucket(stranger.project, "sarto-demo-models")  # before such names were reserved
    name = create(control)
    assert model_bucket.model_bucket(control, member(control).project) == f"sarto-{member(control).project}-models"
    supervise(control)
    assert wait_for_end(control, name)["state"] == "JOB_STATE_SUCCEEDED"
    assert not control.buckets.list("sarto-demo-models").objects
    with pytest.raises(PermissionDenied, match="reserved"):
        model_bucket.check_not_reserved("sarto-gamma-models")
