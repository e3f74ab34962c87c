"""Checks the free disk space before a run starts. Without enough space a job waits; it does not fail."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

from sarto.contract.base_shape import adapter_bytes, checkpoint_bytes, model_bytes
from sarto.contract.tuning_run import RunSpec
from sarto.errors import ResourceExhausted


class DiskFull(Exception):
    """The disk is full, or would be; has the missing bytes."""


def check(spec: RunSpec, folder: Path, reserve_bytes: int) -> None:
    """`spec` has paths of this machine. Raises DiskFull when the run would leave less than the reserve."""
    free, needed = shutil.disk_usage(folder).free, needed_bytes(spec)
    if free < needed + reserve_bytes:
        raise DiskFull(
            f"The job waits for disk space at {folder}: about {needed / 1e6:.0f} MB are needed beside"
            f" {reserve_bytes / 1e6:.0f} MB in reserve, and {free / 1e6:.0f} MB are free."
        )


def needed_bytes(spec: RunSpec) -> int:
    """Estimated size of a run's files: token caches, two resume points, and a checkpoint per epoch in the run folder
    and in its bucket."""
    data = spec.training_dataset.size_bytes + (spec.validation_dataset.size_bytes if spec.validation_dataset else 0)
    folder, given = Path(spec.base.folder), spec.parameters
    size = model_bytes(Path(spec.base_source or folder)) if given.is_full else adapter_bytes(folder, given.rank)
    return 2 * data + checkpoint_bytes(size, given.epoch_count, spec.export_last_checkpoint_only)


def is_full(error: Exception) -> bool:
    """Whether this is an error for a full disk."""
    if isinstance(error, ResourceExhausted):
        return True  # of the buckets' disk, raised by `system.files.disk`
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
