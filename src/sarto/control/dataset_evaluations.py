"""evaluateDataset and evaluateInstances: what is asked, checked, and who answers. `evaluation_work` does the former.

Whoever answers is resolved with the caller's rights when it is asked, and kept with the operation.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

import orjson

from sarto.control import acting, datasets, evaluation_checks, iam, operations, resolution, sealing
from sarto.control.auth import Principal
from sarto.control.context import Control
from sarto.control.resolution import Deployed
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
from sarto.schema.evaluation_faults import config_faults
from sarto.schema.evaluation_service import EvaluateDatasetRequest, EvaluateInstancesRequest
from sarto.storage.buckets import StoredObject
from sarto.storage.tables import dataset_evaluation

EVALUATE_DATASET, EVALUATE_INSTANCES = "aiplatform.locations.evaluateDataset", "aiplatform.locations.evaluateInstances"
MOST_MODELS = 8
METADATA = "EvaluateDatasetOperationMetadata"


def evaluate(
    control: Control, principal: Principal, parent: LocationName, asked: EvaluateDatasetRequest
) -> dict[str, Any]:
    """The operation, not done. Raises InvalidArgument with every fault, PermissionDenied for buckets and models."""
    project = iam.require(control.database, principal, EVALUATE_DATASET, parent.project).number
    uri = _dataset_uri(asked.dataset)
    acting.may_read(control, principal, project, uri)
    found = datasets.find(control, project, "dataset.gcs_source.uris[0]", uri)
    config = EvaluationConfig(
        metrics=asked.metrics,
        output_config=asked.output_config,
        autorater_config=with_judge(control, asked.autorater_config, asked.metrics),
        inference_generation_config=asked.inference_generation_config,
    )
    faults = list(config_faults(config, "", _fields(_first_line(control, found))))
    if asked.models and not asked.metrics:
        faults = [fault for fault in faults if fault.field != ".metrics"]
    if len(asked.models) > MOST_MODELS or len(set(asked.models)) < len(asked.models):
        faults.append(FieldViolation("models", f"Name at most {MOST_MODELS} models, each once."))
    wrong, judges = evaluation_checks.check(control, principal, project, config, "", True)
    targets = {name: _deployed(*judge) for name, judge in judges.items()}
    for index, name in enumerate(asked.models):
        try:
            targets[name] = asdict(_here(control, resolution.resolve(control, principal, name)))
        except SartoError as error:
            faults.append(FieldViolation(f"models[{index}]", error.message))
    faults += wrong
    if faults:
        raise InvalidArgument.of(FieldViolation(fault.field.lstrip("."), fault.description) for fault in faults)
    assert asked.output_config and asked.output_config.gcs_destination
    prefix = asked.output_config.gcs_destination.output_uri_prefix.rstrip("/")
    acting.may_write(control, principal, project, prefix)
    run = {
        "dataset": uri, "models": asked.models, "config": config.to_json(), "targets": targets,
        "outside": sorted({name for _, name in judge_names(config, "")} - targets.keys()),
        "output": f"{prefix}/evaluation-{new_id()}",
        "kmsKey": found.fields.kms_key or next((one["kms_key"] for one in targets.values() if one["kms_key"]), ""),
    }  # fmt: skip
    with control.database.transaction() as connection:
        now = control.database.now(connection)
        made = operations.begin(connection, LocationName(project, parent.location), "", METADATA, {}, now)
        operations.enqueue(connection, dataset_evaluation, made, run, now)
    return made


def with_default_judge(
    control: Control, principal: Principal, parent: LocationName, asked: EvaluateInstancesRequest
) -> EvaluateInstancesRequest:
    """The request with a judge for metrics that need one. Raises InvalidArgument where there is none to be had."""
    iam.require(control.database, principal, EVALUATE_INSTANCES, parent.project)
    metrics = [*asked.metrics]
    if point := asked.pointwise_metric_input:
        metrics.append(Metric(pointwise_metric_spec=point.metric_spec))
    if pair := asked.pairwise_metric_input:
        metrics.append(Metric(pairwise_metric_spec=pair.metric_spec))
    return asked.model_copy(update={"autorater_config": with_judge(control, asked.autorater_config, metrics)})


def judges(
    control: Control, principal: Principal, parent: LocationName, names: Iterable[str]
) -> dict[str, Deployed | None]:
    """Who judges instances, by the names a request gives them; None for one elsewhere. Raises what `resolve` raises."""
    iam.require(control.database, principal, EVALUATE_INSTANCES, parent.project)
    return {
        name: None if name in control.judges else _here(control, resolution.resolve(control, principal, name))
        for name in names
    }


def with_judge(
    control: Control, autorater: AutoraterConfig | None, metrics: Iterable[Metric]
) -> AutoraterConfig | None:
    """The autorater of a request, with the server's own where a metric needs one and none is named. Raises
    InvalidArgument where there is none to be had."""
    if (autorater and autorater.autorater_model) or not any(
        is_judged(metric) and not _own(metric) for metric in metrics
    ):
        return autorater
    if not control.default_judge:
        words = "Name the model that judges; this server has no default_judge in its settings."
        raise InvalidArgument.field("autorater_config.autorater_model", words)
    return (autorater or AutoraterConfig()).model_copy(update={"autorater_model": control.default_judge})


def _own(metric: Metric) -> bool:
    """Whether it names its judge itself."""
    spec = metric.llm_based_metric_spec
    return bool(spec and spec.judge_autorater_config and spec.judge_autorater_config.autorater_model)


def _dataset_uri(dataset: EvaluationDataset | None) -> str:
    if dataset is not None and dataset.bigquery_source:
        raise InvalidArgument.field(
            "dataset.bigquery_source", "There is no BigQuery here; write a gs:// file of JSON lines."
        )
    uris = dataset.gcs_source.uris if dataset and dataset.gcs_source else []
    if len(uris) != 1:
        raise InvalidArgument.field("dataset.gcs_source.uris", "Name one file of JSON lines, gs://BUCKET/FILE.jsonl.")
    return uris[0]


def _first_line(control: Control, found: StoredObject) -> bytes:
    with control.buckets.open(found) as file:
        return file.readline()


def _fields(line: bytes) -> frozenset[str]:
    """What a template may ask of each row, as far as the first one tells."""
    try:
        first = orjson.loads(line)
    except ValueError:
        first = {}
    own = frozenset(first) if isinstance(first, dict) else frozenset()
    return (ROW_FIELDS | own) - RESPONSE_FIELDS - {BASELINE_FIELD}


def _here(control: Control, deployed: Deployed) -> Deployed:
    """Raises FailedPrecondition when its base weights are not on this machine."""
    control.base(deployed.weights)
    return deployed


def _deployed(weights: str, folder: str, digest: str) -> dict[str, Any]:
    return asdict(Deployed(weights, weights, folder, digest, kms_key=sealing.key_of(folder)))
