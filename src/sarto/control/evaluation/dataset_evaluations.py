"""evaluateDataset and evaluateInstances: checks of the request, and resolution of models. `evaluation_work` runs the
first.

Model names are resolved with the caller's rights at the call, and stored with the operation.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import orjson

from sarto.control import operations
from sarto.control.access import authorization, run_identity
from sarto.control.access.principal import Principal
from sarto.control.context import Control
from sarto.control.jobs import dataset_check, other_models
from sarto.control.models import resolution
from sarto.control.models.resolution import ResolvedModel
from sarto.control.operations import OperationRun
from sarto.control.runs import sealed_files
from sarto.errors import FieldViolation, InvalidArgument, SartoError
from sarto.names import LocationName, new_id
from sarto.schema.evaluation import (
    BASELINE_FIELD,
    RESPONSE_FIELDS,
    ROW_FIELDS,
    AutoraterConfig,
    EvaluationConfig,
    EvaluationDataset,
    Metric,
    is_judged,
    judge_names,
)
from sarto.schema.evaluation_requests import EvaluateDatasetRequest, EvaluateInstancesRequest
from sarto.schema.evaluation_validation import config_faults
from sarto.schema.json_size import json_excess
from sarto.storage.buckets.store import StoredObject
from sarto.storage.database.tables import dataset_evaluation

EVALUATE_DATASET, EVALUATE_INSTANCES = "aiplatform.locations.evaluateDataset", "aiplatform.locations.evaluateInstances"
MOST_MODELS = 8
MOST_LINE_BYTES = 16 << 20
METADATA = "EvaluateDatasetOperationMetadata"


class EvaluationRun(OperationRun):
    dataset: str
    """gs:// URI of the rows."""
    models: list[str]
    config: EvaluationConfig
    targets: dict[str, ResolvedModel]
    """Models and judges of this server, by their names in the request."""
    outside: list[str]
    """Names of judges elsewhere."""
    output: str
    """gs:// folder of the results."""


def evaluate(
    control: Control, principal: Principal, parent: LocationName, request: EvaluateDatasetRequest
) -> dict[str, Any]:
    """Start the operation. Raises InvalidArgument with every fault, PermissionDenied for buckets and models."""
    project = authorization.require(control.database, principal, EVALUATE_DATASET, parent.project).number
    uri = _dataset_uri(request.dataset)
    run_identity.check_agent(control, project, [(uri, run_identity.READ)])
    run_identity.may_read(control, principal, project, uri)
    dataset = dataset_check.find(control, project, "dataset.gcs_source.uris[0]", uri)
    config = EvaluationConfig(
        metrics=request.metrics,
        output_config=request.output_config,
        autorater_config=with_judge(control, request.autorater_config, request.metrics),
        inference_generation_config=request.inference_generation_config,
    )
    faults = list(config_faults(config, "", _fields(_first_line(control, dataset))))
    if request.models and not request.metrics:
        faults = [fault for fault in faults if fault.field != ".metrics"]
    if len(request.models) > MOST_MODELS or len(set(request.models)) < len(request.models):
        faults.append(FieldViolation("models", f"Name at most {MOST_MODELS} models, each once."))
    wrong, judges = other_models.check_evaluation(control, principal, project, config, "", True)
    tenant = resolution.tenant_of(principal, project)
    targets = {name: _judge(control, *judge, tenant) for name, judge in judges.items()}
    for index, name in enumerate(request.models):
        try:
            targets[name] = _here(control, resolution.resolve(control, principal, name))
        except SartoError as error:
            faults.append(FieldViolation(f"models[{index}]", error.message))
    faults += wrong
    if faults:
        raise InvalidArgument.of(FieldViolation(fault.field.lstrip("."), fault.description) for fault in faults)
    assert request.output_config and request.output_config.gcs_destination
    prefix = request.output_config.gcs_destination.output_uri_prefix.rstrip("/")
    run_identity.check_both(control, principal, project, [(prefix, run_identity.WRITE)])
    run = EvaluationRun(
        dataset=uri,
        models=request.models,
        config=config,
        targets=targets,
        outside=sorted({name for _, name in judge_names(config, "")} - targets.keys()),
        output=f"{prefix}/evaluation-{new_id()}",
        may_replace=run_identity.may_replace(control, project, prefix, "", principal, makes_own=True),
        kms_key=dataset.fields.kms_key or next((one.kms_key for one in targets.values() if one.kms_key), ""),
    )
    with control.database.transaction() as connection:
        now = control.database.now(connection)
        about = {"dataset": {"gcsSource": {"uris": [uri]}}}
        operation = operations.begin(connection, LocationName(project, parent.location), "", METADATA, about, now)
        operations.enqueue(connection, dataset_evaluation, operation, run, principal, now)
        control.buckets.hold(connection, project, operation["name"].rpartition("/")[2], [dataset])
    return operation


def with_default_judge(
    control: Control, principal: Principal, parent: LocationName, request: EvaluateInstancesRequest
) -> tuple[str, EvaluateInstancesRequest]:
    """The project's number, and the request with a judge for metrics that need one. Raises InvalidArgument if there is
    none."""
    project = authorization.require(control.database, principal, EVALUATE_INSTANCES, parent.project).number
    metrics = [*request.metrics]
    if point := request.pointwise_metric_input:
        metrics.append(Metric(pointwise_metric_spec=point.metric_spec))
    if pair := request.pairwise_metric_input:
        metrics.append(Metric(pairwise_metric_spec=pair.metric_spec))
    return project, request.model_copy(
        update={"autorater_config": with_judge(control, request.autorater_config, metrics)}
    )


def judges(
    control: Control, principal: Principal, parent: LocationName, names: Iterable[str]
) -> dict[str, ResolvedModel | None]:
    """The judges of instances, by their names in the request; None for one elsewhere. Raises the errors of
    `resolve`."""
    authorization.require(control.database, principal, EVALUATE_INSTANCES, parent.project)
    return {
        name: None if name in control.judges else _here(control, resolution.resolve(control, principal, name))
        for name in names
    }


def with_judge(
    control: Control, autorater: AutoraterConfig | None, metrics: Iterable[Metric]
) -> AutoraterConfig | None:
    """The autorater of a request; the server's default judge if a metric needs one and none is named. Raises
    InvalidArgument if there is none."""
    if (autorater and autorater.autorater_model) or not any(
        is_judged(metric) and not _own(metric) for metric in metrics
    ):
        return autorater
    if not control.default_judge:
        words = "Name the model that judges; this server has no default_judge in its settings."
        raise InvalidArgument.field("autorater_config.autorater_model", words)
    return (autorater or AutoraterConfig()).model_copy(update={"autorater_model": control.default_judge})


def _own(metric: Metric) -> bool:
    """Whether it names its own judge."""
    spec = metric.llm_based_metric_spec
    return bool(spec and spec.judge_autorater_config and spec.judge_autorater_config.autorater_model)


def _dataset_uri(dataset: EvaluationDataset | None) -> str:
    if dataset is not None and dataset.bigquery_source:
        raise InvalidArgument.field(
            "dataset.bigquery_source", "BigQuery is not supported; name a gs:// file of JSON lines."
        )
    uris = dataset.gcs_source.uris if dataset and dataset.gcs_source else []
    if len(uris) != 1:
        raise InvalidArgument.field("dataset.gcs_source.uris", "Name one file of JSON lines, gs://BUCKET/FILE.jsonl.")
    return uris[0]


def _first_line(control: Control, dataset: StoredObject) -> bytes:
    with dataset_check.open_text(control, dataset) as file:
        line = file.readline(MOST_LINE_BYTES + 1)
    if len(line) > MOST_LINE_BYTES:
        words = f"The first line has more than {MOST_LINE_BYTES >> 20} MiB; write one JSON object a line."
        raise InvalidArgument.field("dataset.gcs_source.uris[0]", words)
    if reason := json_excess(line):
        raise InvalidArgument.field("dataset.gcs_source.uris[0]", f"The first line {reason}; write smaller rows.")
    return line


def _fields(line: bytes) -> frozenset[str]:
    """Fields for a template, according to the first row."""
    try:
        first = orjson.loads(line)
    except ValueError:
        first = {}
    own = frozenset(first) if isinstance(first, dict) else frozenset()
    return (ROW_FIELDS | own) - RESPONSE_FIELDS - {BASELINE_FIELD}


def _here(control: Control, deployed: ResolvedModel) -> ResolvedModel:
    """Raises FailedPrecondition when its base weights are not on this machine."""
    control.base(deployed.weights)
    return deployed


def _judge(control: Control, weights: str, folder: str, digest: str, tenant: str) -> ResolvedModel:
    key = sealed_files.key_of(control, folder)
    return ResolvedModel(weights, weights, folder, digest, kms_key=key, tenant=tenant)
