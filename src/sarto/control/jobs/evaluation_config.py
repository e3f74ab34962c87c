"""Checks of an evaluation at create, beyond the schema: output bucket, autorater, and validation data."""

from __future__ import annotations

from sarto.control.access.principal import Principal
from sarto.control.context import Control
from sarto.control.jobs.plan import Judges
from sarto.control.models import resolution
from sarto.errors import FieldViolation, InvalidArgument, SartoError
from sarto.names import parse_gs_uri
from sarto.schema.evaluation import EvaluationConfig, judge_names


def check(
    control: Control, principal: Principal, project: str, config: EvaluationConfig, path: str, has_validation: bool
) -> tuple[list[FieldViolation], Judges]:
    """Faults of output, judges and templates, and the judges of this server for the JobPlan."""
    faults: list[FieldViolation] = []
    if not has_validation:
        where = path.removesuffix("evaluation_config") + "validation_dataset_uri"
        faults.append(FieldViolation(where, "An evaluationConfig needs validation data to run on; name a file."))
    destination = config.output_config.gcs_destination if config.output_config else None
    if destination and destination.output_uri_prefix.startswith("gs://"):
        where = f"{path}.output_config.gcs_destination.output_uri_prefix"
        try:
            control.buckets.bucket(parse_gs_uri(f"{destination.output_uri_prefix.rstrip('/')}/x", where)[0], project)
        except InvalidArgument as error:
            faults.extend(error.violations)
        except SartoError as error:
            faults.append(FieldViolation(where, error.message))
    judges: Judges = {}
    for where, name in judge_names(config, path):
        if name in control.judges:
            continue
        try:
            judge = resolution.resolve(control, principal, name)
            control.base(judge.weights)
            judges[name] = judge.weights, judge.adapter_folder, judge.adapter_digest
        except SartoError as error:
            known = f" Judges elsewhere: {', '.join(sorted(control.judges))}." if control.judges else ""
            faults.append(FieldViolation(where, f"The autorater cannot be used: {error.message}{known}"))
    return faults, judges
