"""As whom a job runs: the account it names, or the project's service agent. What a run reads and writes in buckets is
checked with that identity's rights and nothing more, when the job is made, when it starts, and before its output.

A refusal names the missing binding and the very command that gives it. Used by `validation`, `attempts` and
`batch_predictions`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import sqlalchemy as sa

from sarto.control import iam, projects
from sarto.control.auth import Principal
from sarto.control.context import Control
from sarto.control.projects import Project
from sarto.control.roles import ACCOUNT_USER, TOKEN_CREATOR, TUNING_AGENT
from sarto.errors import FailedPrecondition, InvalidArgument, NotFound, PermissionDenied
from sarto.schema.tuning_jobs import TuningJob
from sarto.storage.tables import binding, service_account

FIELD = "tuning_job.service_account"
READ, WRITE = "storage.objects.get", "storage.objects.create"


def check_create(control: Control, principal: Principal, number: str, job: TuningJob) -> None:
    """Raises InvalidArgument (no such account), PermissionDenied and FailedPrecondition (a missing binding)."""
    project = _project(control, number)
    if job.service_account:
        _check_known(control, project, job.service_account)
        _check_caller(control, principal, project, job.service_account)
    check_run(control, number, job)


def check_run(control: Control, number: str, job: TuningJob) -> None:
    """Whether the run may act, read and write now. Raises FailedPrecondition, PermissionDenied, InvalidArgument."""
    project = _project(control, number)
    account = job.service_account
    if account:
        _check_known(control, project, account)
        _check_agent(control, project, account)
    _check_uses(control, project, account or project.agent, _touched(job))


def check_agent(control: Control, number: str, uses: Iterable[tuple[str, str]]) -> None:
    """Whether the project's service agent may do all of `uses`: a URI, and the permission asked for there. For work
    that runs as nobody else. Raises PermissionDenied."""
    project = _project(control, number)
    _check_uses(control, project, project.agent, uses)


def may_read(control: Control, principal: Principal, number: str, uri: str) -> None:
    """Whether a caller may see what an object holds. Raises PermissionDenied."""
    _check_bucket(control, _project(control, number), principal, uri, READ)


def may_write(control: Control, principal: Principal, number: str, uri: str) -> None:
    """Whether a caller may store an object there. Raises PermissionDenied."""
    _check_bucket(control, _project(control, number), principal, uri, WRITE)


def _project(control: Control, number: str) -> Project:
    found = projects.find(control.database, number)
    assert found is not None, "a job lies in a project"
    return found


def _check_known(control: Control, project: Project, email: str) -> None:
    """Another project's account answers as one that does not exist."""
    query = sa.select(service_account.c.disabled).where(
        service_account.c.email == email, service_account.c.project == project.number
    )
    with control.database.reading() as connection:
        row = connection.execute(query).first()
    if row is None:
        raise InvalidArgument.field(
            FIELD,
            f"Service account {email} does not exist in project {project.id}. "
            f"`{_command(project, 'iam accounts list')}` shows those that do.",
        )
    if row.disabled:
        command = _command(project, f"iam accounts enable {email}")
        raise FailedPrecondition(f"Service account {email} is disabled; enable it: `{command}`")


def _check_caller(control: Control, principal: Principal, project: Project, email: str) -> None:
    permission = "iam.serviceAccounts.actAs"
    try:
        iam.require(control.database, principal, permission, project.number, f"serviceAccounts/{email}")
    except PermissionDenied as refusal:
        command = bind_command(project, principal.member, ACCOUNT_USER, email)
        raise PermissionDenied(
            f"You do not have permission to act as service account {email} ({permission}). Grant it: `{command}`",
            refusal.details,
        ) from None


def _check_agent(control: Control, project: Project, email: str) -> None:
    """The account is one for tuning, and the service agent may make tokens of it."""
    held = sa.select(binding.c.role).where(
        binding.c.member == f"serviceAccount:{email}",
        binding.c.role == TUNING_AGENT,
        binding.c.resource == f"projects/{project.number}",
    )
    with control.database.reading() as connection:
        has_role = connection.execute(held).first() is not None
    if not has_role:
        command = bind_command(project, f"serviceAccount:{email}", TUNING_AGENT)
        raise FailedPrecondition(
            f"Service account {email} does not have {TUNING_AGENT} on project {project.id}. Grant it: `{command}`"
        )
    agent = Principal(project.agent, project.number)
    permission = "iam.serviceAccounts.getAccessToken"
    if not iam.allowed(control.database, agent, permission, project.number, f"serviceAccounts/{email}"):
        command = bind_command(project, agent.member, TOKEN_CREATOR, email)
        raise FailedPrecondition(
            f"The service agent {project.agent} may not make tokens of service account {email}: it does not have "
            f"{TOKEN_CREATOR} on it. Grant it: `{command}`"
        )


def _touched(job: TuningJob) -> Iterator[tuple[str, str]]:
    """Each URI the run reads or writes, and the permission it needs there."""
    spec = job.supervised_tuning_spec
    if spec is not None:
        yield spec.training_dataset_uri, READ
        yield spec.validation_dataset_uri, READ
    yield job.custom_base_model, READ
    yield job.output_uri, WRITE
    config = (spec.evaluation_config if spec is not None else None) or job.evaluation_config
    if config is not None and config.output_config and config.output_config.gcs_destination:
        yield config.output_config.gcs_destination.output_uri_prefix, WRITE


def _check_uses(control: Control, project: Project, account: str, uses: Iterable[tuple[str, str]]) -> None:
    for uri, permission in uses:
        _check_bucket(control, project, Principal(account, project.number), uri, permission)


def _check_bucket(control: Control, project: Project, who: Principal, uri: str, permission: str) -> None:
    """What is no bucket of the project is left to those that read it: they find it public, or not at all."""
    if not uri.startswith("gs://"):
        return
    name = uri.removeprefix("gs://").partition("/")[0]
    if iam.allowed(control.database, who, permission, project.number, f"buckets/{name}"):
        return
    try:
        bucket = control.buckets.bucket(name, project.number)
    except NotFound:
        return
    if bucket.is_public and permission == READ:
        return
    role, verb = (
        ("roles/storage.objectViewer", "read") if permission == READ else ("roles/storage.objectAdmin", "write")
    )
    command = bind_command(project, who.member, role, f"gs://{name}")
    raise PermissionDenied(
        f"{who.member} may not {verb} {uri}: it does not have {permission} on bucket {name}. Grant it: `{command}`"
    )


def bind_command(project: Project, member: str, role: str, on: str = "") -> str:
    """What its user types to give the right that is missing."""
    return _command(project, f"iam bind {member} {role}" + (f" --on {on}" if on else ""))


def _command(project: Project, words: str) -> str:
    return f"sarto --project {project.id} {words}"
