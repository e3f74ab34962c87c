"""`encryptionSpec.kmsKeyName`: finds the key, and checks that the project's service agent may encrypt with it.

Checked at create and at the start of the run. The key's state is checked at each use. A refusal names the missing
binding and the command that grants it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sarto.control.access import authorization, projects, run_identity
from sarto.control.access.principal import Principal
from sarto.control.access.projects import Project
from sarto.control.context import Control
from sarto.control.models.resolution import ResolvedModel
from sarto.errors import FailedPrecondition, InvalidArgument, NotFound, PermissionDenied
from sarto.schema.tuning_jobs import TuningJob
from sarto.storage.encryption.key_service import KeyName

FIELD = "tuning_job.encryption_spec.kms_key_name"
ROLE = "roles/cloudkms.cryptoKeyEncrypterDecrypter"
PERMISSIONS = ("cloudkms.cryptoKeyVersions.useToEncrypt", "cloudkms.cryptoKeyVersions.useToDecrypt")


def of_job(control: Control, project: str, location: str, job: TuningJob, parent: ResolvedModel | None) -> str:
    """The key of a job by its canonical name; empty without one. Raises InvalidArgument, FailedPrecondition (the key is
    disabled or destroyed) and PermissionDenied (the service agent may not use it)."""
    text = job.encryption_spec.kms_key_name if job.encryption_spec else ""
    if not text and job.encryption_spec is not None:
        raise InvalidArgument.field(FIELD, "Required field is not set; name a key, or leave encryptionSpec out.")
    key = canonical(control, project, location, text, FIELD) if text else ""
    if parent is not None and parent.kms_key != key:
        words = f"is encrypted under {parent.kms_key}; name that key" if parent.kms_key else "has no key; name none"
        raise InvalidArgument.field(FIELD, f"The tuned model {words}: a model is tuned further only under its own key.")
    if key and job.custom_base_model:
        raise InvalidArgument.field(
            FIELD, "A custom base is stored unencrypted and shared by its jobs: it cannot be tuned under a key."
        )
    if key:
        check(control, project, key)
    return key


def of_bucket(control: Control, project: str, location: str, resource: Mapping[str, Any]) -> dict[str, Any]:
    """The bucket's resource with the canonical name of its key, if any. Raises as `of_job` does."""
    text = resource.get("encryption", {}).get("defaultKmsKeyName", "")
    if not text:
        return dict(resource)
    key = canonical(control, project, location.lower(), text, "bucket.encryption.default_kms_key_name")
    check(control, project, key)
    return {**resource, "encryption": {"defaultKmsKeyName": key}}


def canonical(control: Control, project: str, location: str, text: str, field: str) -> str:
    """The key's name with its project's number, if the key exists and is in an allowed location. Raises
    InvalidArgument; another project's key that this one may not use is treated as missing."""
    try:
        name = KeyName.parse(text)
    except InvalidArgument as error:
        raise InvalidArgument.field(field, error.message) from None
    if not name.key or name.version:
        form = "projects/PROJECT/locations/LOCATION/keyRings/RING/cryptoKeys/KEY"
        raise InvalidArgument.field(field, f'"{text}" is not of the form {form}.')
    if location == "global":
        raise InvalidArgument.field(field, 'The location "global" has no keys; use a region.')
    if name.location != location:
        raise InvalidArgument.field(field, f"The key is in {name.location}; a key in {location} is needed here.")
    owner = projects.find(control.database, name.project)
    key = str(KeyName(owner.number, name.location, name.ring, name.key)) if owner else ""
    ours = projects.find(control.database, project)
    assert ours is not None, "a resource is in a project"
    if not key or (owner != ours and not _allowed(control, ours, key)) or not control.sealer.keys.is_known(key):
        raise InvalidArgument.field(field, f"CryptoKey {text} not found.")
    return key


def check(control: Control, project: str, key: str) -> None:
    """Check that the project's service agent may encrypt and decrypt with the key, and that the key is enabled. Raises
    PermissionDenied, KeyUnusable, FailedPrecondition."""
    ours = projects.find(control.database, project)
    assert ours is not None, "a resource is in a project"
    if not _allowed(control, ours, key):
        command = run_identity.bind_command(ours, f"serviceAccount:{ours.agent}", ROLE, key)
        raise PermissionDenied(
            f"The service agent {ours.agent} may not use {key}: it does not have {ROLE} on it. Grant it: `{command}`."
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
        any(authorization.allowed(control.database, agent, permission, name.project, one) for one in (on, ring))
        for permission in PERMISSIONS
    )
