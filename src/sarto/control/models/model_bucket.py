"""The bucket for the tuned models of a project, and the bucket names that only the service may create."""

from __future__ import annotations

import re

from sarto.control.access import projects
from sarto.control.context import Control
from sarto.errors import AlreadyExists, FailedPrecondition, NotFound, PermissionDenied

RESERVED = re.compile("sarto-.*-models")


def model_bucket(control: Control, number: str) -> str:
    """The project's bucket for tuned models, created if needed. Its name has the project's id; if another project took
    that name before such names were reserved, its number."""
    project = projects.find(control.database, number)
    assert project is not None
    for bucket in (f"sarto-{project.id}-models", f"sarto-{number}-models"):
        try:
            if not _has_bucket(control, bucket, number):
                control.buckets.create_bucket(number, bucket)
        except AlreadyExists:
            if not _has_bucket(control, bucket, number):  # another job of the project may have made it just now
                continue
        return bucket
    raise FailedPrecondition(f"The buckets for models of project {project.id} belong to other projects; free one.")


def check_not_reserved(bucket: str) -> None:
    """Raises PermissionDenied for a name that is reserved for buckets of models."""
    if RESERVED.fullmatch(bucket):
        raise PermissionDenied(
            f'The bucket name "{bucket}" is reserved for tuned models; the first tuning job creates it.'
        )


def _has_bucket(control: Control, bucket: str, project: str) -> bool:
    try:
        control.buckets.bucket(bucket, project)
    except NotFound:
        return False
    return True


OPEN_FOLDER = "postprocess/node-0/checkpoints"
