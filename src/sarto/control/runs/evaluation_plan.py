"""The evaluation after each checkpoint of a run."""

from __future__ import annotations

from collections.abc import Mapping

from sarto.contract.common import EvaluationPlan, JudgeModel
from sarto.contract.places import Places
from sarto.control.context import Control
from sarto.control.runs import sealed_files
from sarto.schema.evaluation import judge_names
from sarto.schema.tuning_jobs import TuningJob


def evaluation_plan(
    control: Control, job: TuningJob, judges_here: Mapping[str, tuple[str, str, str]], places: Places
) -> EvaluationPlan:
    """The evaluation plan for a spec, with file names in these places. Raises SartoError if a judge is not here any
    more."""
    spec = job.tuning_spec
    config = spec.evaluation_config if spec else None
    limit = control.limits.max_evaluation_seconds
    if config is None:
        return EvaluationPlan(max_seconds=limit)
    judges = {
        name: JudgeModel(
            base=places.named(control.base(weights)),
            adapter_folder=places.name(sealed_files.adapter(control, folder)) if folder else "",
            adapter_digest=digest,
        )
        for name, (weights, folder, digest) in judges_here.items()
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
