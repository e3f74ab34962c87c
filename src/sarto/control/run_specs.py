"""From a job to the spec of one run at it. Here alone the API's words become the engine's numbers.

A dataset is pinned when a job first runs: later attempts read the same bytes, whatever happens to the bucket.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path
from typing import Any

import orjson

from sarto.catalog import DIGEST_FILE, Weights
from sarto.control import custom_bases, evaluations, sealing
from sarto.control.context import CUSTOM, QUANTISED, Control
from sarto.control.faults import SPEC
from sarto.control.labels import LOW_MEMORY_LABEL, STOP_EARLY_LABEL
from sarto.control.leases import Lease
from sarto.control.sealing import Workplace
from sarto.control.validation import Plan
from sarto.errors import FailedPrecondition
from sarto.failpoints import around
from sarto.schema.runs import BaseWeights, DatasetRef, RunSpec, TuningParameters
from sarto.schema.tuning_jobs import SupervisedHyperParameters, TuningJob

SPEC_FILE = "spec.json"
ALPHA_PER_RANK = 2.0
TRANSLATION_TOKENS = 1024


def prepare(
    control: Control, lease: Lease, resource: dict[str, Any], plan: Plan, place: Workplace, device: str = "auto"
) -> RunSpec:
    """Lay out the run folder with its `spec.json`. Repeatable; raises SartoError for faults the user can mend."""
    job = TuningJob.read(resource)
    spec = job.supervised_tuning_spec
    assert spec is not None
    if plan.parent_adapter and not Path(plan.parent_adapter).is_dir():
        raise FailedPrecondition("The model that this job continues was deleted before the job ran.")
    folder = place.folder
    run_folder = folder / str(lease.epoch)
    for path in (run_folder, folder / "resume", folder / "data", place.cache):
        path.mkdir(parents=True, exist_ok=True)
    weights = control.catalog.find(plan.base_model).weights
    base, base_source = _base(control, lease.project, folder / "base", job, plan)
    validation_uri = spec.validation_dataset_uri
    given = spec.hyper_parameters or SupervisedHyperParameters()
    made = RunSpec(
        job=job.name,
        epoch=lease.epoch,
        run_folder=str(run_folder),
        base=base,
        base_source=base_source,
        parent_adapter=sealing.adapter(control, plan.parent_adapter) if plan.parent_adapter else None,
        training_dataset=_pin(control, lease.project, place, "training", spec.training_dataset_uri),
        validation_dataset=(
            _pin(control, lease.project, place, "validation", validation_uri) if validation_uri else None
        ),
        data_format="translation" if plan.kind == "translation" else "auto",
        parameters=tuning_parameters(given, plan.rank, weights.learning_rate),
        export_last_checkpoint_only=bool(spec.export_last_checkpoint_only),
        max_tokens_per_example=_context(plan, weights, base_source or base.folder),
        max_training_examples=control.limits.max_training_examples,
        max_validation_examples=control.limits.max_validation_examples,
        cache_folder=str(place.cache),
        resume_folder=str(folder / "resume"),
        resume_seconds=control.limits.resume_seconds,
        threads=control.limits.threads,
        ranks=control.limits.devices,
        device=device,
        serve_int8=control.limits.serve_int8,
        stop_early=job.labels.get(STOP_EARLY_LABEL) == "true",
        low_memory=job.labels.get(LOW_MEMORY_LABEL) == "true",
        evaluation=evaluations.plan(control, job, plan) if validation_uri else None,
    )
    write_whole(run_folder / SPEC_FILE, made.model_dump_json(indent=1).encode())
    return made


def _base(control: Control, project: str, folder: Path, job: TuningJob, plan: Plan) -> tuple[BaseWeights, str]:
    """The base, and for a user's own that no run has made yet the folder to make it from. Raises SartoError."""
    if not (plan.weights.startswith(CUSTOM) and job.custom_base_model):
        return control.base(plan.weights), ""
    base = control.custom_base(plan.weights)
    if (Path(base.folder) / DIGEST_FILE).exists():
        return base, ""
    weights = control.catalog.find(plan.base_model).weights
    found = custom_bases.find(control, project, job.custom_base_model, weights, "tuning_job.custom_base_model")
    if found.id != plan.weights.partition(QUANTISED)[0]:
        raise FailedPrecondition(f"{job.custom_base_model} was changed since the job was created; create it again.")
    found.link_into(control, folder)
    return base, str(folder)


def _context(plan: Plan, weights: Weights, folder: str) -> int:
    if plan.kind == "translation":
        return TRANSLATION_TOKENS
    return custom_bases.context_length(Path(folder), weights) if plan.weights.startswith(CUSTOM) else weights.context


def write_whole(path: Path, data: bytes) -> None:
    """Write a file so that it is either not there or complete."""
    part = path.with_name(f".{path.name}.part")
    with part.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    with around("rename"):
        part.replace(path)


def _pin(control: Control, project: str, place: Workplace, name: str, uri: str) -> DatasetRef:
    """The dataset as a file of our own; made once, then found again. Raises NotFound, InvalidArgument."""
    folder = place.folder / "data"
    record = folder / f"{name}.json"
    path = folder / f"{name}.jsonl"
    if record.exists():  # its path is that of the day; a restored home may lie elsewhere
        return DatasetRef.model_validate_json(record.read_bytes()).model_copy(update={"path": str(path)})
    found = control.buckets.resolve(uri, f"{SPEC}.{name}_dataset_uri", project)
    path.unlink(missing_ok=True)
    digest = found.sha256
    if found.fields.kms_key and place.key:
        with control.buckets.open(found) as source, path.open("wb") as target:
            shutil.copyfileobj(source, target)
        with path.open("rb") as plain:
            digest = hashlib.file_digest(plain, "sha256").hexdigest()
    else:
        with around("link"):
            control.buckets.link_into(found, path)
    made = DatasetRef(uri=uri, path=str(path), size_bytes=found.size, digest=digest)
    write_whole(record, orjson.dumps(made.model_dump()))
    return made


def tuning_parameters(given: SupervisedHyperParameters, rank: int, learning_rate: float) -> TuningParameters:
    """What the user left out stays out, except the learning rate, which is known for the base weights."""
    is_given = given.learning_rate is not None
    return TuningParameters(
        rank=rank,
        alpha=ALPHA_PER_RANK * rank,
        epoch_count=given.epoch_count,
        learning_rate=given.learning_rate if is_given else learning_rate,
        learning_rate_reason="" if is_given else f"{learning_rate:g}, the rate recommended for the base model",
        learning_rate_multiplier=(
            given.learning_rate_multiplier if given.learning_rate_multiplier is not None else 1.0
        ),
        batch_size=given.batch_size,
    )
