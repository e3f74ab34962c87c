"""What can be known to be wrong with an evaluation when its job is created, beyond the words of the config.

Used by `validation`: where results go, who judges, and that there is something to ask.
"""

from __future__ import annotations

from sarto.control import resolution
from sarto.control.auth import Principal
from sarto.control.context import Control
from sarto.errors import FieldViolation, InvalidArgument, SartoError
from sarto.names import parse_gs_uri
from sarto.schema.evaluation import EvaluationConfig, judge_names

BEST_LABEL = "sarto-default-checkpoint"
BEST = "best"
"""The label by which a user asks that the best checkpoint, not the last one, becomes the model's default."""
Judges = dict[str, tuple[str, str, str]]
"""By name: base weights, folder and digest of the adapter."""


def check(
    control: Control, principal: Principal, project: str, config: EvaluationConfig, path: str, has_validation: bool
) -> tuple[list[FieldViolation], Judges]:
    """What is wrong with where results go, who judges and what is asked; and the judges of this server as a Plan keeps
    them."""
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
            found = resolution.resolve(control, principal, name)
            control.base(found.weights)
            judges[name] = found.weights, found.adapter_folder, found.adapter_digest
        except SartoError as error:
            known = f" Judges elsewhere: {', '.join(sorted(control.judges))}." if control.judges else ""
            faults.append(FieldViolation(where, f"The autorater does not answer: {error.message}{known}"))
    return faults, judges
