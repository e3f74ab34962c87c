"""Queries about a dataset, with or without a job: the caller's rights, the resolved names, and the query for the
engine.

A worker process computes the answer. Only the report of a finished run is read here.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import orjson

from sarto.contract.common import BaseWeights, DatasetRef
from sarto.contract.dataset_query import DatasetQuery
from sarto.contract.run_folder import DATA_FOLDER, REPORT_FILE, SPEC_FILE
from sarto.contract.tuning_run import RunSpec
from sarto.control.access import authorization, quoting, run_identity
from sarto.control.access.principal import Principal
from sarto.control.context import Control
from sarto.control.jobs import dataset_check, tuning_jobs
from sarto.control.jobs.job_row import plan_of
from sarto.control.runs import past_runs, sealed_files
from sarto.control.runs.run_spec import TRANSLATION_TOKENS, tuning_parameters, with_reward
from sarto.errors import FieldViolation, InvalidArgument, NotFound
from sarto.names import LocationName, ResourceName, new_id
from sarto.schema.tuning_jobs import SPECS, SpecRow, TuningMode
from sarto.schema.wire import Int64, Message, Struct, Text
from sarto.storage.buckets.store import StoredObject
from sarto.storage.encryption import envelope


class DatasetCheck(Message):
    """`row` is the 1-based line that `showExample` shows."""

    SPELLINGS: ClassVar[dict[str, str]] = {"prompt_dataset_uri": "training_dataset_uri"}

    base_model: Text = ""
    training_dataset_uri: Text = ""
    validation_dataset_uri: Text = ""
    method: Text = ""
    """As Google's clients name it, in any case; supervised tuning where it is empty."""
    hyper_parameters: Struct | None = None
    """Those of the method."""
    tuning_mode: TuningMode | None = None
    row: Int64 = 1


@dataclass(frozen=True)
class WorkerQuery:
    """A query for the worker of a base. `close` it after the response: until then `opened` holds its data."""

    project: str
    """The number of the project."""
    base: BaseWeights
    question: DatasetQuery
    opened: Path | None = None

    def close(self) -> None:
        if self.opened is not None:
            shutil.rmtree(self.opened, ignore_errors=True)


def question(control: Control, principal: Principal, parent: LocationName, check: DatasetCheck) -> WorkerQuery:
    """The query of a request. Raises InvalidArgument with every fault."""
    project = authorization.require(control.database, principal, "aiplatform.tuningJobs.create", parent.project).number
    required = {"base_model": check.base_model, "training_dataset_uri": check.training_dataset_uri}
    faults = [FieldViolation(name, "Required field is not set.") for name, text in required.items() if not text]
    if check.row < 1:
        faults.append(FieldViolation("row", "Lines are counted from 1."))
    if faults:
        raise InvalidArgument.of(faults)
    for uri in (check.training_dataset_uri, check.validation_dataset_uri):
        run_identity.may_read(control, principal, project, uri)
    entry = control.catalog.find(check.base_model, "base_model")
    method = _method(check, entry.rules.kind)
    spec = method.message.read({"hyper_parameters": check.hyper_parameters or {}})
    parameters = spec.parameters
    is_full = check.tuning_mode is TuningMode.TUNING_MODE_FULL
    rank = parameters.adapter_size.rank if parameters.adapter_size else entry.rules.default_adapter_size
    data_format = method.format_for(entry.rules.kind)
    files = [
        (uri, dataset_check.find(control, project, field, uri))
        for field, uri in (
            ("training_dataset_uri", check.training_dataset_uri),
            ("validation_dataset_uri", check.validation_dataset_uri),
        )
        if uri
    ]
    is_sealed = any(stored.fields.kms_key for _, stored in files)
    opened = _private(control) if is_sealed else control.home / "runs" / f"question-{new_id()}"
    opened.mkdir(mode=0o700, parents=True, exist_ok=True)
    refs = [_reference(control, uri, stored, opened) for uri, stored in files]
    query = DatasetQuery(
        training=refs[0],
        validation=refs[1] if len(refs) > 1 else None,
        data_format=data_format,
        parameters=with_reward(
            tuning_parameters(method, parameters, 0 if is_full else rank, entry.weights, is_full=is_full), spec
        ),
        max_tokens_per_example=TRANSLATION_TOKENS if data_format == "translation" else entry.weights.context,
        max_training_examples=control.limits.max_training_examples,
        max_validation_examples=control.limits.max_validation_examples,
        cache_folder=_make_folder(control, opened / "tokens" if is_sealed else control.token_cache(project)),
        threads=control.limits.threads,
        past_runs=past_runs.of_project(control.database, project),
        refusal=next(filter(None, (dataset_check.refusal(control, stored, data_format) for _, stored in files)), ""),
        row=check.row,
    )
    return WorkerQuery(project, control.catalog.base(entry.weights), query, opened)


def _method(check: DatasetCheck, kind: str) -> SpecRow:
    """Raises InvalidArgument for a method that is not built, or not for models of this kind."""
    rows = list(SPECS.values())
    name = check.method.upper() or rows[0].client_name
    spec_row = next((row for row in rows if name in (row.client_name, row.method.upper())), None)
    if spec_row is None:
        listed = ", ".join(row.client_name for row in rows)
        raise InvalidArgument.field("method", f'"{check.method}" is not one of {listed}.')
    if not spec_row.reads(kind):
        raise InvalidArgument.field("method", f"{spec_row.client_name} is not for {check.base_model}.")
    return spec_row


def _make_folder(control: Control, folder: Path) -> str:
    """The name of the folder, into which the process may write but which it may not create."""
    folder.mkdir(parents=True, exist_ok=True)
    return control.places.name(folder)


def job_question(control: Control, principal: Principal, name: ResourceName, row: int) -> WorkerQuery:
    """The query for one row of a job's pinned data. Raises NotFound before the data was pinned."""
    project = authorization.require(control.database, principal, "aiplatform.tuningJobs.get", name.project).number
    spec_file = _newest(control, principal, name, SPEC_FILE)
    if spec_file is None:
        raise NotFound(f"TuningJob {name} has not begun to read its data; try again when it runs.")
    spec = RunSpec.model_validate_json(sealed_files.read(control, name.id, spec_file))
    with control.database.reading() as connection:
        base = control.base(plan_of(tuning_jobs.find(connection, project, name)).weights)
    pinned, opened = control.job_folder(name.id) / DATA_FOLDER / "training.jsonl", None
    training = spec.training_dataset.model_copy(update={"path": control.places.name(pinned)})
    if envelope.is_sealed(pinned):
        opened = _private(control)
        with sealed_files.open_file(control, name.id, pinned) as file:
            training = _opened(control, training, file, opened / "training.jsonl")
    query = DatasetQuery(
        training=training,
        data_format=spec.data_format,
        parameters=spec.parameters,
        max_tokens_per_example=spec.max_tokens_per_example,
        max_training_examples=spec.max_training_examples,
        max_validation_examples=spec.max_validation_examples,
        cache_folder=_make_folder(control, opened / "tokens" if opened else control.token_cache(project)),
        threads=spec.threads,
        row=row,
    )
    return WorkerQuery(project, base, query, opened)


def job_report(control: Control, principal: Principal, name: ResourceName) -> dict[str, Any]:
    """The data report of a job, from the time when its run read the data. Raises NotFound until then."""
    report_file = _newest(control, principal, name, REPORT_FILE)
    if report_file is None:
        raise NotFound(f"TuningJob {name} has no data report: its data has not been read.")
    report: dict[str, Any] = orjson.loads(sealed_files.read(control, name.id, report_file))
    return report


def _newest(control: Control, principal: Principal, name: ResourceName, file: str) -> Path | None:
    """A file of the job's latest run that has it, for callers who may read the job's data. Raises NotFound when there
    is no such job."""
    project = authorization.require(control.database, principal, "aiplatform.tuningJobs.get", name.project).number
    quoting.check_reads_data(control, principal, project, tuning_jobs.get(control, principal, name))
    runs = [run for run in control.job_folder(name.id).glob(f"*/{file}") if run.parent.name.isdigit()]
    return max(runs, key=lambda run: int(run.parent.name), default=None)


def _private(control: Control) -> Path:
    return control.sealer.private.new(f"question-{new_id()}")


def _opened(control: Control, data: DatasetRef, source: BinaryIO, target: Path) -> DatasetRef:
    """The same data as a plain file."""
    with target.open("wb") as file:
        shutil.copyfileobj(source, file)
    return data.model_copy(update={"path": control.places.name(target)})


def _reference(control: Control, uri: str, stored: StoredObject, opened: Path) -> DatasetRef:
    """The found version, held while the query is open."""
    target = opened / stored.sha256
    target.unlink(missing_ok=True)  # both names may hold the same bytes
    size, digest = dataset_check.pin(control, stored, target, is_private=True)
    return DatasetRef(uri=uri, path=control.places.name(target), size_bytes=size, digest=digest)
