"""The service's buckets in a project, for tuned models and for files of OpenAI clients, and the bucket names that only
the service may create."""

from __future__ import annotations

import re

from sarto.control.access import projects
from sarto.control.context import Control
from sarto.errors import AlreadyExists, FailedPrecondition, NotFound, PermissionDenied

RESERVED = re.compile("sarto-.*-(models|files)")


def model_bucket(control: Control, number: str) -> str:
    """The project's bucket for tuned models, created if needed."""
    return _own_bucket(control, number, "models")


def file_bucket(control: Control, number: str) -> str:
    """The project's bucket for files of OpenAI clients, created if needed."""
    return _own_bucket(control, number, "files")


def find_file_bucket(control: Control, number: str) -> str:
    """The name of `file_bucket`, which may not exist yet."""
    names = _names(control, number, "files")
    return next((name for name in names if _has_bucket(control, name, number)), names[0])


def _own_bucket(control: Control, number: str, kind: str) -> str:
    """Its name has the project's id; if another project took that name before such names were reserved, its number."""
    names = _names(control, number, kind)
    for bucket in names:
        try:
            if not _has_bucket(control, bucket, number):
                control.buckets.create_bucket(number, bucket)
        except AlreadyExists:
            if not _has_bucket(control, bucket, number):  # another job of the project may have made it just now
                continue
        return bucket
    raise FailedPrecondition(f"{names[0]} and {names[1]} belong to other projects; free one.")


def _names(control: Control, number: str, kind: str) -> tuple[str, str]:
    project = projects.find(control.database, number)
    assert project is not None
    return f"sarto-{project.id}-{kind}", f"sarto-{number}-{kind}"


def check_not_reserved(bucket: str) -> None:
    """Raises PermissionDenied for a name that is reserved for buckets of models."""
    if RESERVED.fullmatch(bucket):
        raise PermissionDenied(
            f'The bucket name "{bucket}" is reserved for models and files; the service creates it when needed.'
        )


def _has_bucket(control: Control, bucket: str, project: str) -> bool:
    try:
        control.buckets.bucket(bucket, project)
    except NotFound:
        return False
    return True


OPEN_FOLDER = "postprocess/node-0/checkpoints"
