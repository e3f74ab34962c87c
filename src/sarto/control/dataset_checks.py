"""Questions about a dataset, before any job or of one: who may ask, what the names mean, and the question in the
engine's words. A worker answers; only the report that a job's run left is read here.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from sarto.control import acting, datasets, iam, sealing, tuning_jobs
from sarto.control.auth import Principal
from sarto.control.context import Control
from sarto.control.run_specs import SPEC_FILE, TRANSLATION_TOKENS, tuning_parameters
from sarto.errors import FieldViolation, InvalidArgument, NotFound
from sarto.names import LocationName, ResourceName, new_id
from sarto.schema.examples import DataFormat
from sarto.schema.runs import REPORT_FILE, BaseWeights, DatasetQuestion, DatasetRef, RunSpec
from sarto.schema.tuning_jobs import SupervisedHyperParameters
from sarto.schema.wire import Int64, Message, Text
from sarto.storage import encryption
from sarto.storage.buckets import StoredObject


class DatasetCheck(Message):
    """`row` is the 1-based line that `showExample` shows."""

    base_model: Text = ""
    training_dataset_uri: Text = ""
    validation_dataset_uri: Text = ""
    hyper_parameters: SupervisedHyperParameters | None = None
    row: Int64 = 1


@dataclass(frozen=True)
class Asked:
    """What to ask the worker of a base. `close` it when there is an answer: sealed data lies in the open for it."""

    base: BaseWeights
    question: DatasetQuestion
    opened: Path | None = None

    def close(self) -> None:
        if self.opened is not None:
            shutil.rmtree(self.opened, ignore_errors=True)


def question(control: Control, principal: Principal, parent: LocationName, check: DatasetCheck) -> Asked:
    """Raises InvalidArgument with every fault."""
    project = iam.require(control.database, principal, "aiplatform.tuningJobs.create", parent.project).number
    required = {"base_model": check.base_model, "training_dataset_uri": check.training_dataset_uri}
    faults = [FieldViolation(name, "Required field is not set.") for name, text in required.items() if not text]
    if check.row < 1:
        faults.append(FieldViolation("row", "Lines are counted from 1."))
    if faults:
        raise InvalidArgument.of(faults)
    for uri in (check.training_dataset_uri, check.validation_dataset_uri):
        acting.may_read(control, principal, project, uri)
    entry = control.catalog.find(check.base_model, "base_model")
    given = check.hyper_parameters or SupervisedHyperParameters()
    rank = given.adapter_size.rank if given.adapter_size else entry.rules.default_adapter_size
    is_translation = entry.rules.kind == "translation"
    data_format: DataFormat = "translation" if is_translation else "auto"
    files = [
        (uri, datasets.find(control, project, field, uri))
        for field, uri in (
            ("training_dataset_uri", check.training_dataset_uri),
            ("validation_dataset_uri", check.validation_dataset_uri),
        )
        if uri
    ]
    opened = _private(control) if any(found.fields.kms_key for _, found in files) else None
    refs = [_reference(control, uri, found, opened) for uri, found in files]
    asked = DatasetQuestion(
        training=refs[0],
        validation=refs[1] if len(refs) > 1 else None,
        data_format=data_format,
        parameters=tuning_parameters(given, rank, entry.weights.learning_rate),
        max_tokens_per_example=TRANSLATION_TOKENS if is_translation else entry.weights.context,
        max_training_examples=control.limits.max_training_examples,
        max_validation_examples=control.limits.max_validation_examples,
        cache_folder=str((opened or control.home / "cache") / "tokens"),
        refusal=next(filter(None, (datasets.first_fault(control, found, data_format) for _, found in files)), ""),
        row=check.row,
    )
    return Asked(control.catalog.base(entry.weights), asked, opened)


def job_question(control: Control, principal: Principal, name: ResourceName, row: int) -> Asked:
    """For one row of the data that a job pinned. Raises NotFound before it did."""
    iam.require(control.database, principal, "storage.objects.get", name.project)
    found = _newest(control, principal, name, SPEC_FILE)
    if found is None:
        raise NotFound(f"TuningJob {name} has not begun to read its data; try again when it runs.")
    spec = RunSpec.model_validate_json(sealing.read(control, name.id, found))
    training, opened = spec.training_dataset, None
    pinned = control.job_folder(name.id) / "data" / "training.jsonl"
    if encryption.is_sealed(pinned):
        opened = _private(control)
        with sealing.open_file(control, name.id, pinned) as file:
            training = _opened(training, file, opened / "training.jsonl")
    asked = DatasetQuestion(
        training=training,
        data_format=spec.data_format,
        parameters=spec.parameters,
        max_tokens_per_example=spec.max_tokens_per_example,
        max_training_examples=spec.max_training_examples,
        max_validation_examples=spec.max_validation_examples,
        cache_folder=str(opened / "tokens") if opened else spec.cache_folder,
        row=row,
    )
    return Asked(spec.base, asked, opened)


def job_report(control: Control, principal: Principal, name: ResourceName) -> dict[str, Any]:
    """The data report of a job, there from the moment its run read the data. Raises NotFound until then."""
    found = _newest(control, principal, name, REPORT_FILE)
    if found is None:
        raise NotFound(f"TuningJob {name} has no data report: its data has not been read.")
    report: dict[str, Any] = orjson.loads(sealing.read(control, name.id, found))
    return report


def _newest(control: Control, principal: Principal, name: ResourceName, file: str) -> Path | None:
    """The file as the job's latest run that has it left it. Raises NotFound when there is no such job."""
    tuning_jobs.get(control, principal, name)
    runs = [run for run in control.job_folder(name.id).glob(f"*/{file}") if run.parent.name.isdigit()]
    return max(runs, key=lambda run: int(run.parent.name), default=None)


def _private(control: Control) -> Path:
    return control.sealer.private.new(f"question-{new_id()}")


def _opened(data: DatasetRef, source: BinaryIO, target: Path) -> DatasetRef:
    """The same data at a place where it lies in the open."""
    with target.open("wb") as file:
        shutil.copyfileobj(source, file)
    return data.model_copy(update={"path": str(target)})


def _reference(control: Control, uri: str, found: StoredObject, opened: Path | None) -> DatasetRef:
    if found.fields.kms_key and opened is not None:
        data = DatasetRef(uri=uri, path="", size_bytes=found.size, digest=found.sha256)
        with control.buckets.open(found) as file:
            return _opened(data, file, opened / found.sha256)
    return DatasetRef(uri=uri, path=str(control.buckets.path(found)), size_bytes=found.size, digest=found.sha256)
