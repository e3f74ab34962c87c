"""From a job to the spec of one run. Only this module converts the API's terms to the engine's numbers.

A job refers to its datasets as they were at create, and links them into its folder at its first run. Every attempt
reads the same bytes, even when an object in the bucket is replaced.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import orjson

from sarto.catalog import DIGEST_FILE, Weights
from sarto.contract.common import CUSTOM, FULL, BaseWeights, DatasetRef, ReinforcementParameters, TuningParameters
from sarto.contract.run_folder import BASE_FOLDER, DATA_FOLDER, RESUME_FOLDER, SPEC_FILE, TOKENS, in_workspace
from sarto.contract.tuning_run import RunSpec
from sarto.control.context import QUANTISED, Control
from sarto.control.jobs import dataset_check
from sarto.control.jobs.label_switches import Switches
from sarto.control.jobs.plan import JobPlan
from sarto.control.jobs.violations import spec_path
from sarto.control.models import custom_bases
from sarto.control.runs import past_runs, sealed_files
from sarto.control.runs.evaluation_plan import evaluation_plan, teaching
from sarto.control.runs.workspace import Workspace
from sarto.control.scheduling.leases import Lease
from sarto.errors import FailedPrecondition
from sarto.schema.tuning_jobs import HyperParameters, ReinforcementTuningSpec, SpecRow, TuningJob, TuningSpec
from sarto.system.files import write_whole

ALPHA_PER_RANK = 2.0
TRANSLATION_TOKENS = 1024


def prepare(
    control: Control, lease: Lease, job: TuningJob, plan: JobPlan, workspace: Workspace, device: str = "auto"
) -> RunSpec:
    """Write the run folder with its `spec.json`. Repeatable; raises SartoError for faults that the user can correct."""
    spec, row = job.tuning_spec, job.spec_row
    assert spec is not None and row is not None
    if plan.parent_adapter and not control.adapter_folder(plan.parent_adapter).is_dir():
        raise FailedPrecondition("The model that this job continues was deleted before the job ran.")
    switches, folder = Switches.of(job.labels), workspace.folder
    for needed in (workspace.run_folder, folder / RESUME_FOLDER, folder / DATA_FOLDER, workspace.cache):
        needed.mkdir(parents=True, exist_ok=True)
    weights = control.catalog.find(plan.base_model).weights
    base, source = _base(control, lease.project, folder / BASE_FOLDER, job, plan)
    base_folder = source or Path(base.folder)
    parent = sealed_files.adapter(control, plan.parent_adapter) if plan.parent_adapter else None
    validation_uri, path = spec.validation_dataset_uri, spec_path(job)
    pin = partial(_pin, control, lease, workspace)
    run_spec = RunSpec(
        job=job.name,
        epoch=lease.epoch,
        run_folder=in_workspace(lease.epoch),
        method=row.method,
        base=workspace.places.named(base),
        base_source=in_workspace(BASE_FOLDER) if source else "",
        parent_adapter=workspace.places.name(parent) if parent else None,
        training_dataset=pin("training", spec.dataset_uri, f"{path}.{spec.dataset_field}"),
        validation_dataset=pin("validation", validation_uri, f"{path}.validation_dataset_uri")
        if validation_uri
        else None,
        data_format=row.format_for(plan.kind),
        parameters=with_reward(
            _with_wishes(tuning_parameters(row, spec.parameters, plan.rank, weights, is_full=plan.is_full), plan), spec
        ),
        export_last_checkpoint_only=bool(spec.export_last_checkpoint_only),
        max_tokens_per_example=_context(plan, weights, base_folder),
        max_training_examples=min(
            control.limits.max_training_examples, row.most_rows or control.limits.max_training_examples
        ),
        max_validation_examples=control.limits.max_validation_examples,
        cache_folder=TOKENS,
        resume_folder=in_workspace(RESUME_FOLDER),
        resume_seconds=control.limits.resume_seconds,
        threads=control.limits.threads,
        instructions=control.instructions(base_folder),
        ranks=control.limits.devices,
        device=device,
        serve_int8=control.serve_int8,
        past_runs=past_runs.of_project(control.database, lease.project),
        stop_early=switches.stop_early,
        low_memory=switches.low_memory,
        evaluation=evaluation_plan(control, job, plan.judges, workspace.places),
        teaching=teaching(control, job, plan, base_folder, workspace.places),
        quotes=not workspace.key,
    )
    workspace.places.located(run_spec)  # raises where a name is none
    write_whole(workspace.run_folder / SPEC_FILE, run_spec.model_dump_json(indent=1).encode())
    return run_spec


def with_reward(parameters: TuningParameters, spec: TuningSpec) -> TuningParameters:
    """The parameters with the reward and the numbers of a spec that has one."""
    if not isinstance(spec, ReinforcementTuningSpec):
        return parameters
    given = spec.parameters
    sampling = ReinforcementParameters(
        reward=spec.reward,
        step_count=given.step_count,
        samples_per_prompt=given.samples_per_prompt,
        max_output_tokens=given.max_output_tokens,
        evaluate_interval=given.evaluate_interval,
        checkpoint_interval=given.checkpoint_interval,
    )
    return parameters.model_copy(update={"reinforcement": sampling})


def _base(
    control: Control, project: str, folder: Path, job: TuningJob, plan: JobPlan
) -> tuple[BaseWeights, Path | None]:
    """The base; for a custom base that no run has converted yet, also the folder to convert. Raises SartoError."""
    if not (plan.weights.startswith(CUSTOM) and job.custom_base_model):
        return control.base(plan.weights), None
    base = control.custom_base(plan.weights).model_copy(update={"hub": job.custom_base_model})
    if (Path(base.folder) / DIGEST_FILE).exists():
        return base, None
    weights = control.catalog.find(plan.base_model).weights
    custom_base = custom_bases.find(control, project, job.custom_base_model, weights, "tuning_job.custom_base_model")
    if plan.weights.partition(QUANTISED)[0] not in (custom_base.id, custom_base.shared_id):
        raise FailedPrecondition(f"{job.custom_base_model} was changed since the job was created; create it again.")
    custom_base.link_into(control, folder)
    Path(base.folder).mkdir(parents=True, exist_ok=True)  # the run may write into it, not beside it
    return base, folder


def _context(plan: JobPlan, weights: Weights, folder: Path) -> int:
    if plan.kind == "translation":
        return TRANSLATION_TOKENS
    if plan.weights.startswith((CUSTOM, FULL)):
        return custom_bases.context_length(folder, weights)
    return weights.context


def _pin(control: Control, lease: Lease, workspace: Workspace, name: str, uri: str, field: str) -> DatasetRef:
    """The dataset as a file of the job, created once. Raises NotFound, InvalidArgument."""
    folder = workspace.folder / DATA_FOLDER
    record = folder / f"{name}.json"
    path = folder / f"{name}.jsonl"
    file_name = in_workspace(DATA_FOLDER, path.name)
    if record.exists():  # one that an earlier release made has a path
        return DatasetRef.model_validate_json(record.read_bytes()).model_copy(update={"path": file_name})
    stored = control.buckets.held(lease.project, lease.job, uri, field)
    path.unlink(missing_ok=True)
    size, digest = dataset_check.pin(control, stored, path, is_private=bool(workspace.key))
    reference = DatasetRef(uri=uri, path=file_name, size_bytes=size, digest=digest)
    write_whole(record, orjson.dumps(reference.model_dump()))
    return reference


def _with_wishes(parameters: TuningParameters, plan: JobPlan) -> TuningParameters:
    """With the values that the job's maker gave beyond its spec."""
    given = {"batch_size": plan.batch_size, "seed": plan.seed}
    return parameters.model_copy(update={name: value for name, value in given.items() if value is not None})


def tuning_parameters(
    method: SpecRow, requested: HyperParameters, rank: int, weights: Weights, *, is_full: bool
) -> TuningParameters:
    """The user's parameters. Unset ones stay unset, except beta, and the learning rate, which follows from the base
    weights."""
    recommended = weights.full_learning_rate if is_full else weights.learning_rate
    is_given, rate = requested.learning_rate is not None, recommended * method.rate_share
    share = "" if method.rate_share == 1 else f", times {method.rate_share:g} for {method.method} tuning"
    kind = " in full tuning" if is_full else ""
    beta, beta_reason = requested.beta, ""
    if beta is None and method.default_beta is not None:
        beta, beta_reason = method.default_beta, f"{method.default_beta:g}, the usual value"
    return TuningParameters(
        rank=rank,
        alpha=ALPHA_PER_RANK * rank,
        is_full=is_full,
        epoch_count=requested.epoch_count,
        learning_rate=requested.learning_rate if is_given else rate,
        learning_rate_reason=(
            "" if is_given else f"{recommended:g}, the rate recommended for the base model{kind}{share}"
        ),
        learning_rate_multiplier=(
            requested.learning_rate_multiplier if requested.learning_rate_multiplier is not None else 1.0
        ),
        batch_size=requested.batch_size,
        beta=beta,
        beta_reason=beta_reason,
        warmup_fraction=method.warmup_fraction,
    )
