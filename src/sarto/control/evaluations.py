"""What a run's evaluation found, made visible: results on the job, files in buckets, the standard report to read.

The fault of a bucket is the evaluation's, never the job's. Used by `attempts`, `publishing` and the doors.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import orjson

from sarto.control import events, iam, judge_endpoints, leases, question_desk, sealing, tuning_jobs
from sarto.control.auth import Principal
from sarto.control.context import AnyRow, Control
from sarto.control.evaluation_checks import BEST, BEST_LABEL
from sarto.control.leases import Lease
from sarto.control.sealing import Workplace
from sarto.control.tuning_jobs import amend
from sarto.control.validation import Plan
from sarto.errors import NotFound, SartoError
from sarto.names import ResourceName, parse_gs_uri
from sarto.schema.evaluation import judge_names
from sarto.schema.runs import EVALUATION_FOLDER, Assessment, EvaluationPlan, JudgeModel, RunSpec
from sarto.schema.tuning_jobs import TuningJob

REPORT_FOLDER = "report"
JSON_FILE, PAGE_FILE = "report.json", "report.html"
CONTENT_TYPES = {".json": "application/json", ".jsonl": "application/jsonl", ".html": "text/html; charset=utf-8"}


def plan(control: Control, job: TuningJob, decided: Plan) -> EvaluationPlan:
    """What a run evaluates."""
    spec = job.supervised_tuning_spec
    config = spec.evaluation_config if spec else None
    limit = control.limits.max_evaluation_seconds
    if config is None:
        return EvaluationPlan(max_seconds=limit)
    judges = {
        name: JudgeModel(
            base=control.base(weights),
            adapter_folder=sealing.adapter(control, folder) if folder else "",
            adapter_digest=digest,
        )
        for name, (weights, folder, digest) in decided.judges.items()
    }
    assert config.output_config and config.output_config.gcs_destination
    prefix = config.output_config.gcs_destination.output_uri_prefix.rstrip("/")
    return EvaluationPlan(
        config=config.to_json(),
        judges=judges,
        outside_judges=sorted({name for _, name in judge_names(config, "")} - judges.keys()),
        output_uri=f"{prefix}/{job.name.rpartition('/')[2]}",
        max_seconds=limit,
    )


def judging(control: Control, spec: RunSpec, run_folder: Path) -> AbstractContextManager[None]:
    """While this lasts a run's questions to judges elsewhere are answered."""
    names = spec.evaluation.outside_judges if spec.evaluation else ()
    return question_desk.answering(run_folder, names, partial(judge_endpoints.ask_one, control.judges))


def publish(control: Control, lease: Lease, assessment: Assessment, place: Workplace) -> None:
    """The files of a checkpoint's metrics into the user's bucket, the results onto the job. Raises Fenced."""
    run = assessment.run
    if run is None:
        return
    if uri := run.get("evaluateDatasetResponse", {}).get("outputInfo", {}).get("gcsOutputDirectory"):
        try:
            upload(control, lease.project, _folder(place.folder) / assessment.folder, uri, place.key)
        except SartoError as error:
            words = f"The results could not be written to {uri}: {error.message}"
            run = {**run, "error": {**error.to_status(), "message": words}}
    with control.database.transaction() as connection:
        row = leases.hold(connection, lease)
        known = orjson.loads(row.resource).get("evaluateDatasetRuns", ())
        runs = [each for each in known if each["checkpointId"] != assessment.checkpoint_id]
        now = control.database.now(connection)
        amend(connection, row, now, {"evaluateDatasetRuns": [*runs, run]})
        if fault := run.get("error"):
            words = f"The evaluation of checkpoint {assessment.checkpoint_id} has an error: {fault['message']}"
            events.record(connection, lease.project, lease.job, lease.epoch, now, "note", words)


def publish_report(control: Control, lease: Lease, folder_uri: str, place: Workplace) -> None:
    """The standard report into the bucket of the job's artifacts; a bucket that refuses it is an event."""
    try:
        upload(control, lease.project, _folder(place.folder) / REPORT_FOLDER, folder_uri, place.key)
        words = f"The evaluation report is at {folder_uri}/{PAGE_FILE}."
    except SartoError as error:
        words = f"The evaluation report could not be stored at {folder_uri}: {error.message}"
    with control.database.transaction() as connection:
        row = leases.hold(connection, lease)
        now = control.database.now(connection)
        events.record(connection, row.project, row.id, lease.epoch, now, "evaluation", words)


def default_checkpoint(row: AnyRow, checkpoints: list[AnyRow], best: str | None) -> AnyRow:
    """The last one, or the best where the user asked for that by a label."""
    if orjson.loads(row.resource).get("labels", {}).get(BEST_LABEL) == BEST and best is not None:
        return next((made for made in checkpoints if made.checkpoint_id == best), checkpoints[-1])
    return checkpoints[-1]


def report(control: Control, principal: Principal, name: ResourceName) -> dict[str, Any]:
    """The standard report of a job as JSON. Raises NotFound while there is none."""
    found: dict[str, Any] = orjson.loads(_report_file(control, principal, name, JSON_FILE))
    return found


def page(control: Control, principal: Principal, name: ResourceName) -> bytes:
    """The same as one HTML page."""
    return _report_file(control, principal, name, PAGE_FILE)


def _report_file(control: Control, principal: Principal, name: ResourceName, file: str) -> bytes:
    iam.require(control.database, principal, "storage.objects.get", name.project)
    tuning_jobs.get(control, principal, name)
    path = _folder(control.job_folder(name.id)) / REPORT_FOLDER / file
    if not path.exists():
        raise NotFound(
            f"TuningJob {name} has no evaluation report: it is made at the end of a job that has validation data."
        )
    return sealing.read(control, name.id, path)


def _folder(job_folder: Path) -> Path:
    return job_folder / "resume" / EVALUATION_FOLDER


def upload(control: Control, project: str, folder: Path, uri: str, kms_key: str = "") -> None:
    """Every file of a folder and of those in it. Raises what a bucket raises."""
    bucket, prefix = parse_gs_uri(f"{uri}/", "output_uri_prefix")
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            content_type = CONTENT_TYPES.get(path.suffix, "application/octet-stream")
            name = prefix + path.relative_to(folder).as_posix()
            control.buckets.put_file(bucket, name, path, content_type=content_type, project=project, kms_key=kms_key)
