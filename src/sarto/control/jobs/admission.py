"""The memory and the disk space that a job needs, and whether this service has them."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

from sarto.contract import base_shape
from sarto.contract.base_shape import BaseShape, checkpoint_bytes, model_bytes
from sarto.control.context import Control
from sarto.control.jobs.plan import JobPlan
from sarto.control.jobs.servers import largest_memory
from sarto.errors import FailedPrecondition
from sarto.schema.tuning_jobs import TuningJob

STATES_PER_WEIGHT = 4
"""Values per trained weight: the weight, its gradient, and the optimiser's state."""


def with_needs(control: Control, plan: JobPlan, *, low_memory: bool) -> JobPlan:
    """The plan with the memory of its run. Raises FailedPrecondition with the numbers when no server has that."""
    needed, least = _needs(control, plan, low_memory)
    planned = replace(plan, memory_bytes=needed, least_memory_bytes=least)
    with control.database.reading() as connection:
        largest = largest_memory(connection, control.database.now(connection), control.limits)
    if largest and least > largest:
        raise FailedPrecondition(unfit(planned, largest))
    return planned


def unfit(plan: JobPlan, largest: int) -> str:
    """The reason why a job can never run here."""
    words = f"Full tuning of {plan.base_model}" if plan.is_full else f"Tuning {plan.base_model} at rank {plan.rank}"
    return (
        f"{words} needs at least {giga(plan.least_memory_bytes)} of memory, and"
        f" no server here has more than {giga(largest)} for runs. Choose a smaller base model, or have the"
        " administrator raise run_memory_bytes or add a machine."
    )


def _needs(control: Control, plan: JobPlan, low_memory: bool) -> tuple[int, int]:
    """Bytes that a run takes, and the least with which it works; 0 if the base's shape is unknown. The weights of a
    teacher on another base count, since a run may have both in memory."""
    taught = 0
    try:
        base = control.base(plan.weights)
        folder = Path(base.folder)
        shape = BaseShape.load(folder, base.quantisation)
        if plan.teacher is not None and plan.teacher[0] != plan.weights:
            teacher = control.base(plan.teacher[0])
            taught = BaseShape.load(teacher.folder, teacher.quantisation).weight_bytes
    except (FailedPrecondition, OSError, ValueError, KeyError, TypeError):
        return 0, 0  # a base of the user's own is made when its first run begins
    if plan.is_full:
        least = shape.full_least_bytes
        needed = max(least, shape.full_peak_bytes() // 2) if low_memory else shape.full_peak_bytes()
        return needed + taught, least + taught
    trained = STATES_PER_WEIGHT * base_shape.adapter_bytes(folder, plan.rank)
    least = shape.least_bytes + trained
    needed = max(least, shape.peak_bytes() // 2) if low_memory else shape.peak_bytes() + trained
    return needed + taught, least + taught


def giga(size: int) -> str:
    return f"{size / 1e9:.1f} GB"


def check_disk(control: Control, plan: JobPlan, job: TuningJob) -> None:
    """Raises FailedPrecondition with the numbers if the files of a job that tunes all weights would not fit the disk. A
    custom base that no run has converted yet is checked by its run."""
    spec = job.tuning_spec
    if not plan.is_full or spec is None or job.custom_base_model:
        return
    size = model_bytes(Path(control.base(plan.weights).folder))
    needed = checkpoint_bytes(size, spec.parameters.epoch_count, bool(spec.export_last_checkpoint_only))
    free, reserve = shutil.disk_usage(control.home).free, control.limits.reserve_bytes
    if needed + reserve > free:
        raise FailedPrecondition(
            f"Full tuning of {plan.base_model} writes about {needed / 1e9:.1f} GB: two resume points, and each"
            f" checkpoint of {size / 1e9:.1f} GB here and in its bucket. The disk of {control.home} has"
            f" {free / 1e9:.1f} GB free, {reserve / 1e9:.1f} GB of them in reserve. Set exportLastCheckpointOnly, tune"
            " for fewer epochs, or free space."
        )
