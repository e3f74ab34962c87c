"""Publishes a run's evaluation: results on the job, files in buckets, the standard report.

A bucket that cannot be written is an error of the evaluation; the job still succeeds.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from sqlalchemy.engine import Connection

from sarto.contract.run_folder import (
    EVALUATION_FOLDER,
    EVALUATION_REPORT_FOLDER,
    LABELLED_FOLDER,
    REPORT_PAGE_FILE,
    RESUME_FOLDER,
)
from sarto.contract.tuning_run import Assessment, RunSpec
from sarto.control.access import run_identity
from sarto.control.context import AnyRow, Control
from sarto.control.executors.executor import RunTransport
from sarto.control.jobs import events
from sarto.control.jobs.job_row import job_of, plan_of
from sarto.control.jobs.label_switches import Switches
from sarto.control.jobs.states import amend
from sarto.control.runs import artifacts, external_judge, model_relay
from sarto.control.runs.workspace import Workspace
from sarto.control.scheduling import leases
from sarto.control.scheduling.leases import Lease
from sarto.errors import SartoError
from sarto.storage.buckets.batch_write import StagedFiles, by_suffix


def judging(control: Control, spec: RunSpec, run: RunTransport) -> AbstractContextManager[None]:
    """Answer a run's requests to models elsewhere within the block: judges, and the teacher of a distillation."""
    names = {*(spec.evaluation.outside_judges if spec.evaluation else ())}
    if spec.teaching is not None and spec.teaching.model is None:
        names.add(spec.teaching.teacher)
    return model_relay.answering(run, spec.run_folder, names, partial(external_judge.ask_one, control.judges))


def publish(control: Control, lease: Lease, assessment: Assessment, workspace: Workspace) -> None:
    """Store the files of a checkpoint's metrics in the user's bucket, and the results on the job. Raises Fenced."""
    run = assessment.run
    if run is None:
        return
    uri = run.get("evaluateDatasetResponse", {}).get("outputInfo", {}).get("gcsOutputDirectory", "")
    with control.database.reading() as connection:
        row = leases.hold(connection, lease)
    known = job_of(row).evaluate_dataset_runs
    is_ours = any(each.checkpoint_id == assessment.checkpoint_id and each.error is None for each in known)
    may_replace = is_ours or _may_replace(control, row, uri)  # objects that this job wrote before are its own
    source = report_folder(workspace.folder) / assessment.folder
    with (
        storing(control, lease.project, source, uri, workspace.key) as files,
        control.database.transaction() as connection,
    ):
        row = leases.hold(connection, lease)
        if fault := files.name(connection, may_replace):
            words = f"The results could not be written to {uri}: {fault.message}"
            run = {**run, "error": {**fault.to_status(), "message": words}}
        now = control.database.now(connection)
        others = [
            each.to_json()
            for each in job_of(row).evaluate_dataset_runs
            if each.checkpoint_id != assessment.checkpoint_id
        ]
        amend(connection, row, now, {"evaluateDatasetRuns": [*others, run]})
        if error := run.get("error"):
            words = f"The evaluation of checkpoint {assessment.checkpoint_id} has an error: {error['message']}"
            events.record(connection, lease.project, lease.job, lease.epoch, now, "note", words)
    files.collect_replaced()


def _may_replace(control: Control, row: AnyRow, uri: str) -> bool:
    by_maker, account = plan_of(row).may_replace_evaluation, job_of(row).service_account
    return not uri or (by_maker and run_identity.may_replace(control, row.project, uri, account))


def publish_report(control: Control, lease: Lease, folder_uri: str, workspace: Workspace, may_replace: bool) -> None:
    """Store the standard report in the bucket of the job's artifacts; a failure is an event."""
    source = report_folder(workspace.folder) / EVALUATION_REPORT_FOLDER
    with (
        storing(control, lease.project, source, folder_uri, workspace.key) as files,
        control.database.transaction() as connection,
    ):
        row = leases.hold(connection, lease)
        words = f"The evaluation report is at {folder_uri}/{REPORT_PAGE_FILE}."
        if fault := files.name(connection, may_replace):
            words = f"The evaluation report could not be stored at {folder_uri}: {fault.message}"
        now = control.database.now(connection)
        events.record(connection, row.project, row.id, lease.epoch, now, "evaluation", words)
    files.collect_replaced()


def publish_labelled(control: Control, lease: Lease, folder_uri: str, workspace: Workspace, may_replace: bool) -> None:
    """Store the rows that a distillation's teacher labelled; a failure is an event."""
    source = workspace.folder / RESUME_FOLDER / LABELLED_FOLDER
    if not source.is_dir():
        return
    with (
        storing(control, lease.project, source, folder_uri, workspace.key) as files,
        control.database.transaction() as connection,
    ):
        row = leases.hold(connection, lease)
        words = f"The labelled data is at {folder_uri}/training.jsonl, in the form of supervised tuning."
        if fault := files.name(connection, may_replace):
            words = f"The labelled data could not be stored at {folder_uri}: {fault.message}"
        now = control.database.now(connection)
        events.record(connection, row.project, row.id, lease.epoch, now, "note", words)
    files.collect_replaced()


def default_checkpoint(row: AnyRow, checkpoints: list[AnyRow], best: str | None) -> AnyRow:
    """The last checkpoint, or the best if the user's label selects it."""
    if Switches.of(job_of(row).labels).best_is_default and best is not None:
        return next((one for one in checkpoints if one.checkpoint_id == best), checkpoints[-1])
    return checkpoints[-1]


def report_folder(job_folder: Path) -> Path:
    return job_folder / RESUME_FOLDER / EVALUATION_FOLDER


@dataclass
class PendingFiles:
    """The received files of an evaluation, or the error of receiving them: it must not stop a job."""

    control: Control
    project: str
    received: StagedFiles | None = None
    """None where there is nowhere to store them."""
    fault: SartoError | None = None
    """The error for which they could not be received."""
    replaced: list[str] = field(default_factory=list)

    def name_all(self, connection: Connection, may_replace: bool) -> list[str]:
        """Name all of them, or none; returns the replaced content. Raises the bucket's errors."""
        if self.fault is not None:
            raise self.fault
        return self.received.write(connection, self.project, may_replace=may_replace) if self.received else []

    def name(self, connection: Connection, may_replace: bool) -> SartoError | None:
        """The same for a transaction that continues without them: returns the error."""
        try:
            self.replaced = self.name_all(connection, may_replace)
        except SartoError as error:
            return error
        return None

    def collect_replaced(self) -> None:
        for content in self.replaced:
            self.control.buckets.collect(content)


@contextmanager
def storing(control: Control, project: str, folder: Path, uri: str, kms_key: str = "") -> Iterator[PendingFiles]:
    """The files of a folder for `uri`; none if that is empty."""
    pending = PendingFiles(control, project)
    with ExitStack() as stack:
        try:
            if uri:
                pending.received = stack.enter_context(artifacts.received(control, folder, uri, kms_key, by_suffix))
        except SartoError as error:
            pending.fault = error
        yield pending
