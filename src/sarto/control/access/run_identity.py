"""Rights in buckets for work that runs later, and for reading quoted data.

A job runs as the service account it names, or as the project's service agent. Both the maker and the run's identity
need the rights on its inputs and outputs. The maker's rights are checked at create; the identity's at create, at start
and before output. A refusal names the missing binding and the command that grants it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager

import sqlalchemy as sa

from sarto.control.access import authorization, decisions, projects
from sarto.control.access.principal import Principal
from sarto.control.access.projects import Project
from sarto.control.access.roles import ACCOUNT_USER, OBJECT_ADMIN, TOKEN_CREATOR, TUNING_AGENT
from sarto.control.context import Control
from sarto.errors import FailedPrecondition, InvalidArgument, NotFound, PermissionDenied
from sarto.names import parse_gs_uri
from sarto.schema.tuning_jobs import TuningJob
from sarto.storage.database.tables import binding, service_account

FIELD = "tuning_job.service_account"
READ, WRITE, DELETE = "storage.objects.get", "storage.objects.create", "storage.objects.delete"


def check_create(control: Control, principal: Principal, number: str, job: TuningJob) -> None:
    """Raises InvalidArgument (missing account), PermissionDenied and FailedPrecondition (a missing binding)."""
    project = _project(control, number)
    if job.service_account:
        _check_known(control, project, job.service_account)
        _check_caller(control, principal, project, job.service_account)
    check_run(control, number, job)
    _check_caller_uses(control, principal, project, _touched(job))


def check_run(control: Control, number: str, job: TuningJob) -> None:
    """Check that the run may act, read and write now. Raises FailedPrecondition, PermissionDenied, InvalidArgument."""
    project = _project(control, number)
    account = job.service_account
    if account:
        _check_known(control, project, account)
        _check_agent(control, project, account)
    _check_uses(control, project, account or project.agent, _touched(job))


def check_both(control: Control, principal: Principal, number: str, uses: Iterable[tuple[str, str]]) -> None:
    """Check all of `uses` for the caller and the project's service agent. Raises PermissionDenied."""
    pairs = list(uses)
    check_agent(control, number, pairs)
    _check_caller_uses(control, principal, _project(control, number), pairs)


def check_agent(control: Control, number: str, uses: Iterable[tuple[str, str]]) -> None:
    """Check all of `uses`, pairs of a URI and a permission, for the project's service agent, as which the work runs.
    Raises PermissionDenied."""
    project = _project(control, number)
    _check_uses(control, project, project.agent, uses)


def may_read(control: Control, principal: Principal, number: str, uri: str) -> None:
    """Check that a caller may read an object. Raises PermissionDenied."""
    _check_bucket(control, _project(control, number), principal, uri, READ)


def check_quoted(control: Control, principal: Principal, number: str, uri: str) -> None:
    """Check that a caller may see quotes of an object. If its bucket was deleted, the right to read all objects of the
    project is needed. Raises PermissionDenied."""
    _check_bucket(control, _project(control, number), principal, uri, READ, may_be_gone=False)


def can_read(control: Control, principal: Principal, number: str, uris: Iterable[str]) -> bool:
    """Whether a caller may see quotes of all of these objects."""
    try:
        for uri in uris:
            check_quoted(control, principal, number, uri)
    except PermissionDenied:
        return False
    return True


def may_replace(
    control: Control, number: str, folder: str, account: str, maker: Principal | None = None, *, makes_own: bool = False
) -> bool:
    """Whether work that runs as the account (empty: the service agent) may replace objects below a gs:// folder. That
    needs the right to delete them, of the account and of the maker, if there is one. With a maker it raises
    PermissionDenied if an object exists that may not be replaced, so that the work does not start; not for work that
    `makes_own` a folder of a new name below this one."""
    who = [Principal(account or _project(control, number).agent, number)]
    if maker is not None and control.limits.callers_need_rights:
        who.append(maker)
    bucket, name = parse_gs_uri(folder, "uri")
    refused = [
        one for one in who if not authorization.allowed(control.database, one, DELETE, number, f"buckets/{bucket}")
    ]
    is_early = maker is not None and not makes_own
    if refused and is_early and control.buckets.list(bucket, f"{name.rstrip('/')}/", limit=1).objects:
        member = refused[0].member
        command = bind_command(_project(control, number), member, OBJECT_ADMIN, f"gs://{bucket}")
        raise PermissionDenied(
            f"There are objects below {folder.rstrip('/')}/ already, and {member} may not replace them: it does not "
            f"have {DELETE} on bucket {bucket}. Write to another folder, or grant it: `{command}`."
        )
    return not refused


def on_behalf(
    control: Control, number: str, asked_by: str, work: str, account: str = ""
) -> AbstractContextManager[None]:
    """For the audit log: within the block the service acts as the account, or as the project's service agent, for the
    member who requested the work."""
    return decisions.on_behalf(Principal(account or _project(control, number).agent, number), asked_by, work)


def evaluation_prefix(job: TuningJob) -> str:
    """Output prefix of the job's evaluation; empty without one."""
    spec = job.tuning_spec
    config = (spec.evaluation_config if spec is not None else None) or job.evaluation_config
    to = config.output_config.gcs_destination if config is not None and config.output_config else None
    return to.output_uri_prefix if to is not None else ""


def note_read(control: Control, number: str, uri: str) -> None:
    """For the audit log: the service reads data as the project's service agent."""
    agent = Principal(_project(control, number).agent, number)
    decisions.note_use(agent, READ, _resource(uri), number, is_allowed=True)


def _resource(uri: str) -> str:
    bucket, _, name = uri.removeprefix("gs://").partition("/")
    return f"projects/_/buckets/{bucket}/objects/{name}"


def _project(control: Control, number: str) -> Project:
    project = projects.find(control.database, number)
    assert project is not None, "a job is in a project"
    return project


def _check_known(control: Control, project: Project, email: str) -> None:
    """Another project's account is treated as missing."""
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
        raise FailedPrecondition(f"Service account {email} is disabled; enable it: `{command}`.")


def _check_caller(control: Control, principal: Principal, project: Project, email: str) -> None:
    permission = "iam.serviceAccounts.actAs"
    try:
        authorization.require(control.database, principal, permission, project.number, f"serviceAccounts/{email}")
    except PermissionDenied as refusal:
        command = bind_command(project, principal.member, ACCOUNT_USER, email)
        raise PermissionDenied(
            f"You do not have permission to act as service account {email} ({permission}). Grant it: `{command}`.",
            refusal.details,
        ) from None


def _check_agent(control: Control, project: Project, email: str) -> None:
    """Check that the account is one for tuning, and that the service agent may create its tokens."""
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
            f"Service account {email} does not have {TUNING_AGENT} on project {project.id}. Grant it: `{command}`."
        )
    agent = Principal(project.agent, project.number)
    permission = "iam.serviceAccounts.getAccessToken"
    if not authorization.allowed(control.database, agent, permission, project.number, f"serviceAccounts/{email}"):
        command = bind_command(project, agent.member, TOKEN_CREATOR, email)
        raise FailedPrecondition(
            f"The service agent {project.agent} may not create tokens of service account {email}: it does not have "
            f"{TOKEN_CREATOR} on it. Grant it: `{command}`."
        )


def _touched(job: TuningJob) -> Iterator[tuple[str, str]]:
    """Each URI that the run reads or writes, with the permission for it."""
    spec = job.tuning_spec
    if spec is not None:
        yield spec.dataset_uri, READ
        yield spec.validation_dataset_uri, READ
    yield job.custom_base_model, READ
    yield job.output_uri, WRITE
    if job.distillation_spec is not None:
        yield job.distillation_spec.pipeline_root_directory, WRITE
    if prefix := evaluation_prefix(job):
        yield prefix, WRITE


def _check_caller_uses(
    control: Control, principal: Principal, project: Project, uses: Iterable[tuple[str, str]]
) -> None:
    """Check the caller's rights, unless `data_rights` is `agent`, as at Google."""
    if not control.limits.callers_need_rights:
        return
    for uri, permission in uses:
        _check_bucket(control, project, principal, uri, permission)


def _check_uses(control: Control, project: Project, account: str, uses: Iterable[tuple[str, str]]) -> None:
    for uri, permission in uses:
        _check_bucket(control, project, Principal(account, project.number), uri, permission)


def _check_bucket(
    control: Control, project: Project, who: Principal, uri: str, permission: str, *, may_be_gone: bool = True
) -> None:
    """A bucket of another project is not checked here: its use finds it public or missing."""
    if not uri.startswith("gs://"):
        return
    name = _bucket_name(uri)
    is_allowed = authorization.allowed(control.database, who, permission, project.number, f"buckets/{name}")
    if permission == READ or not is_allowed:  # a write has its own entry when it happens
        decisions.note_use(who, permission, _resource(uri), project.number, is_allowed)
    if is_allowed:
        return
    where = f"gs://{name}"
    try:
        bucket = control.buckets.bucket(name, project.number)
    except NotFound:
        if may_be_gone:
            return
        where = ""
    else:
        if bucket.is_public and permission == READ:
            return
    role, verb = ("roles/storage.objectViewer", "read") if permission == READ else (OBJECT_ADMIN, "write")
    command = bind_command(project, who.member, role, where)
    raise PermissionDenied(
        f"{who.member} may not {verb} {uri}: it does not have {permission} on bucket {name}. Grant it: `{command}`."
    )


def _bucket_name(uri: str) -> str:
    return uri.removeprefix("gs://").partition("/")[0]


def bind_command(project: Project, member: str, role: str, on: str = "") -> str:
    """The command that grants the missing right."""
    return _command(project, f"iam bind {member} {role}" + (f" --on {on}" if on else ""))


def _command(project: Project, words: str) -> str:
    return f"sarto --project {project.id} {words}"
