"""Questions about a dataset before any job: who may ask, what names mean, the question in the engine's words."""

from __future__ import annotations

from sarto.control import iam
from sarto.control.auth import Principal
from sarto.control.context import Control
from sarto.control.run_specs import TRANSLATION_TOKENS, tuning_parameters
from sarto.errors import FieldViolation, InvalidArgument, NotFound
from sarto.names import LocationName
from sarto.schema.runs import DatasetQuestion, DatasetRef
from sarto.schema.tuning_jobs import SupervisedHyperParameters
from sarto.schema.wire import Int64, Message, Text


class DatasetCheck(Message):
    """`row` is the 1-based line that `showExample` shows."""

    base_model: Text = ""
    training_dataset_uri: Text = ""
    validation_dataset_uri: Text = ""
    hyper_parameters: SupervisedHyperParameters | None = None
    row: Int64 = 1


def question(
    control: Control, principal: Principal, parent: LocationName, check: DatasetCheck
) -> tuple[str, DatasetQuestion]:
    """The base weights' id and what to ask the worker. Raises InvalidArgument with every fault."""
    project = iam.require(control.database, principal, "aiplatform.tuningJobs.create", parent.project).number
    required = {"base_model": check.base_model, "training_dataset_uri": check.training_dataset_uri}
    faults = [FieldViolation(name, "Required field is not set.") for name, text in required.items() if not text]
    if check.row < 1:
        faults.append(FieldViolation("row", "Lines are counted from 1."))
    if faults:
        raise InvalidArgument.of(faults)
    entry = control.catalog.find(check.base_model, "base_model")
    given = check.hyper_parameters or SupervisedHyperParameters()
    rank = given.adapter_size.rank if given.adapter_size else entry.rules.default_adapter_size
    is_translation = entry.rules.kind == "translation"
    validation = check.validation_dataset_uri
    return entry.weights.id, DatasetQuestion(
        training=_dataset(control, project, check.training_dataset_uri, "training_dataset_uri"),
        validation=_dataset(control, project, validation, "validation_dataset_uri") if validation else None,
        data_format="translation" if is_translation else "auto",
        parameters=tuning_parameters(given, rank, entry.weights.learning_rate),
        max_tokens_per_example=TRANSLATION_TOKENS if is_translation else entry.weights.context,
        max_training_examples=control.limits.max_training_examples,
        max_validation_examples=control.limits.max_validation_examples,
        cache_folder=str(control.home / "cache" / "tokens"),
        row=check.row,
    )


def _dataset(control: Control, project: str, uri: str, field: str) -> DatasetRef:
    try:
        found = control.buckets.resolve(uri, field, project)
    except NotFound as error:
        raise InvalidArgument.field(field, f"{error.message} ({uri})") from None
    return DatasetRef(uri=uri, path=str(control.buckets.path(found)), size_bytes=found.size, digest=found.sha256)
