"""Whether the disk has room for a run, before it starts. A job waits for room; it does not fail for want of it."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path

from sarto.errors import ResourceExhausted
from sarto.schema.runs import RunSpec

VALUE_BYTES = 4
EPOCHS_UNKNOWN = 4


class NoRoom(Exception):
    """The disk is full, or would be; says how much is missing."""


def check(spec: RunSpec, folder: Path, reserve_bytes: int) -> None:
    """Raises NoRoom when the run would leave less than the reserve."""
    free, needed = shutil.disk_usage(folder).free, needed_bytes(spec)
    if free < needed + reserve_bytes:
        raise NoRoom(
            f"The job waits for room at {folder}: about {needed / 1e6:.0f} MB are needed beside"
            f" {reserve_bytes / 1e6:.0f} MB in reserve, and {free / 1e6:.0f} MB are free."
        )


def needed_bytes(spec: RunSpec) -> int:
    """About what a run writes: token caches, a resume point while the next is written, and a checkpoint per epoch in
    the run folder and in its bucket."""
    data = spec.training_dataset.size_bytes + (spec.validation_dataset.size_bytes if spec.validation_dataset else 0)
    checkpoints = 1 if spec.export_last_checkpoint_only else spec.parameters.epoch_count or EPOCHS_UNKNOWN
    return 2 * data + adapter_bytes(Path(spec.base.folder), spec.parameters.rank) * (2 * 3 + 2 * checkpoints)


def adapter_bytes(base: Path, rank: int) -> int:
    """Of an adapter on every projection; 0 where the base does not say its shape."""
    try:
        config = json.loads((base / "config.json").read_bytes())
        width, inner, layers = (int(config[name]) for name in ("hidden_size", "intermediate_size", "num_hidden_layers"))
    except (OSError, ValueError, KeyError, TypeError):
        return 0
    return VALUE_BYTES * rank * layers * (4 * 2 * width + 3 * (width + inner))


def is_full(error: Exception) -> bool:
    """Whether this is the disk's way to say that it is full."""
    if isinstance(error, ResourceExhausted):
        return True  # of the buckets' disk: `storage.content.disk` says so
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
