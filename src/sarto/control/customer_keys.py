"""`encryptionSpec.kmsKeyName`: which key it names, and whether the project's service agent may seal with it.

Asked when a job is made and when its run starts; whether the key is enabled is then asked as long as it is used. What
is refused names what is missing and the command that mends it. Used by `validation`, `attempts` and the bucket doors.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sarto.control import acting, iam, projects
from sarto.control.auth import Principal
from sarto.control.context import Control
from sarto.control.projects import Project
from sarto.control.resolution import Deployed
from sarto.errors import FailedPrecondition, InvalidArgument, NotFound, PermissionDenied
from sarto.schema.tuning_jobs import TuningJob
from sarto.storage.keys import KeyName

FIELD = "tuning_job.encryption_spec.kms_key_name"
ROLE = "roles/cloudkms.cryptoKeyEncrypterDecrypter"
PERMISSIONS = ("cloudkms.cryptoKeyVersions.useToEncrypt", "cloudkms.cryptoKeyVersions.useToDecrypt")


def of_job(control: Control, project: str, location: str, job: TuningJob, parent: Deployed | None) -> str:
    """The key of a job by its canonical name; empty without one. Raises InvalidArgument, FailedPrecondition (it is
    disabled or destroyed) and PermissionDenied (the service agent may not use it)."""
    text = job.encryption_spec.kms_key_name if job.encryption_spec else ""
    if not text and job.encryption_spec is not None:
        raise InvalidArgument.field(FIELD, "Required field is not set; name a key, or leave encryptionSpec out.")
    key = canonical(control, project, location, text, FIELD) if text else ""
    if parent is not None and parent.kms_key != key:
        words = f"was sealed under {parent.kms_key}; name that key" if parent.kms_key else "has no key; name none"
        raise InvalidArgument.field(FIELD, f"The tuned model {words}: a model is tuned further under its own key.")
    if key and job.custom_base_model:
        raise InvalidArgument.field(
            FIELD, "A base of your own is kept unsealed, for every job on it: it cannot be tuned under a key."
        )
    if key:
        check(control, project, key)
    return key


def of_bucket(control: Control, project: str, location: str, resource: Mapping[str, Any]) -> dict[str, Any]:
    """The bucket's resource with the canonical name of the key it asks for, if any. Raises as `of_job` does."""
    text = resource.get("encryption", {}).get("defaultKmsKeyName", "")
    if not text:
        return dict(resource)
    key = canonical(control, project, location.lower(), text, "bucket.encryption.default_kms_key_name")
    check(control, project, key)
    return {**resource, "encryption": {"defaultKmsKeyName": key}}


def canonical(control: Control, project: str, location: str, text: str, field: str) -> str:
    """The key's name with its project's number, of a key that is here and in the right place. Raises InvalidArgument;
    another project's key that this one may not use answers as one that does not exist."""
    try:
        name = KeyName.parse(text)
    except InvalidArgument as error:
        raise InvalidArgument.field(field, f"{error.message}.") from None
    if not name.key or name.version:
        wanted = "projects/PROJECT/locations/LOCATION/keyRings/RING/cryptoKeys/KEY"
        raise InvalidArgument.field(field, f'"{text}" is not of the form {wanted}.')
    if location == "global":
        raise InvalidArgument.field(field, "Keys are not had in the location global; use a region.")
    if name.location != location:
        raise InvalidArgument.field(field, f"The key is in {name.location}; a key in {location} is needed here.")
    owner = projects.find(control.database, name.project)
    found = str(KeyName(owner.number, name.location, name.ring, name.key)) if owner else ""
    ours = projects.find(control.database, project)
    assert ours is not None, "a resource lies in a project"
    if not found or (owner != ours and not _allowed(control, ours, found)) or not control.sealer.keys.is_known(found):
        raise InvalidArgument.field(field, f"CryptoKey {text} not found.")
    return found


def check(control: Control, project: str, key: str) -> None:
    """Whether the project's service agent may seal and open with the key, and the key is enabled. Raises
    PermissionDenied, KeyUnusable, FailedPrecondition."""
    ours = projects.find(control.database, project)
    assert ours is not None, "a resource lies in a project"
    if not _allowed(control, ours, key):
        command = acting.bind_command(ours, f"serviceAccount:{ours.agent}", ROLE, key)
        raise PermissionDenied(
            f"The service agent {ours.agent} may not use {key}: it does not have {ROLE} on it. Grant it: `{command}`"
        )
    try:
        control.sealer.keys.check(key)
    except NotFound as error:
        raise FailedPrecondition(error.message) from None


def _allowed(control: Control, ours: Project, key: str) -> bool:
    agent, name = Principal(ours.agent, ours.number), KeyName.parse(key)
    on = key.removeprefix(f"projects/{name.project}/")
    ring = on.partition("/cryptoKeys/")[0]
    return all(
        any(iam.allowed(control.database, agent, permission, name.project, one) for one in (on, ring))
        for permission in PERMISSIONS
    )
