"""A job runs as an account: every binding it needs, asked for by name with the command that gives it."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable

import pytest
import sqlalchemy as sa

from sarto.control.access import account_store, authorization, projects
from sarto.control.access.principal import Principal
from sarto.control.context import Control
from sarto.control.jobs import tuning_jobs
from sarto.control.runs.supervisor import Supervisor
from sarto.errors import FailedPrecondition, InvalidArgument, PermissionDenied, SartoError
from sarto.schema.tuning_jobs import TuningJob
from sarto.storage.database.tables import binding
from sarto.storage.database.tables import service_account as accounts
from tests.control.homes import PARENT, add_project, create, job_body, wait_for_end

EMAIL = "tuner-account@demo.iam.gserviceaccount.com"
CALLER = "user:grace@example.com"


def number(control: Control) -> str:
    found = projects.find(control.database, "demo")
    assert found is not None
    return found.number


def caller(control: Control) -> Principal:
    project = number(control)
    with control.database.transaction() as connection:
        authorization.bind(connection, f"projects/{project}", "roles/aiplatform.user", CALLER)
    return Principal("grace@example.com", "", "user")


def make_account(control: Control) -> None:
    found = projects.find(control.database, "demo")
    assert found is not None
    with control.database.transaction() as connection:
        account_store.create(connection, found, "tuner-account", "", 0.0)


def obey(control: Control, message: str) -> str:
    """Do what the command in the message does; gives the role it was about."""
    words = shlex.split(re.findall(r"`sarto --project demo iam bind ([^`]*)`", message)[0])
    member, role = words[:2]
    on = words[3] if len(words) > 2 else ""
    key = f"projects/{number(control)}"
    if on.startswith("gs://"):
        key += f"/buckets/{on[5:]}"
    elif on:
        key += f"/serviceAccounts/{on}"
    with control.database.transaction() as connection:
        authorization.bind(connection, key, role, member)
    control.database.rights_changes += 1
    return role


def test_each_missing_binding_is_named_with_its_command_until_none_is_missing(any_control: Control) -> None:
    control = any_control
    who = caller(control)
    job = TuningJob.read(job_body(serviceAccount=EMAIL), "tuning_job")
    with pytest.raises(InvalidArgument, match="does not exist in project demo"):
        tuning_jobs.create(control, who, PARENT, job)
    make_account(control)
    asked: list[tuple[type[SartoError], str]] = []
    for _ in range(6):
        try:
            tuning_jobs.create(control, who, PARENT, job)
            break
        except SartoError as refusal:
            asked.append((type(refusal), obey(control, refusal.message)))
    assert asked == [
        (PermissionDenied, "roles/iam.serviceAccountUser"),
        (FailedPrecondition, "roles/aiplatform.tuningServiceAgent"),
        (FailedPrecondition, "roles/iam.serviceAccountTokenCreator"),
        (PermissionDenied, "roles/storage.objectViewer"),
        (PermissionDenied, "roles/storage.objectViewer"),
    ]


def allow_everything(control: Control) -> None:
    make_account(control)
    project, member = number(control), f"serviceAccount:{EMAIL}"
    agent = f"serviceAccount:service-{project}@{projects.AGENT_DOMAIN}"
    with control.database.transaction() as connection:
        authorization.bind(connection, f"projects/{project}", "roles/aiplatform.tuningServiceAgent", member)
        authorization.bind(connection, f"projects/{project}/buckets/data", "roles/storage.objectViewer", member)
        on = f"projects/{project}/serviceAccounts/{EMAIL}"
        authorization.bind(connection, on, "roles/iam.serviceAccountTokenCreator", agent)
    control.database.rights_changes += 1


def withdraw(control: Control, role: str) -> None:
    with control.database.transaction() as connection:
        connection.execute(binding.delete().where(binding.c.role == role))
    control.database.rights_changes += 1


@pytest.mark.parametrize(
    ("role", "words"),
    [
        ("roles/storage.objectViewer", "may not read gs://data/train.jsonl"),
        ("roles/aiplatform.tuningServiceAgent", "does not have roles/aiplatform.tuningServiceAgent"),
        ("roles/iam.serviceAccountTokenCreator", "may not create tokens"),
    ],
)
def test_rights_withdrawn_before_the_run_fail_it_with_that_message(
    control: Control, supervise: Callable[[Control], Supervisor], role: str, words: str
) -> None:
    allow_everything(control)
    name = create(control, serviceAccount=EMAIL)
    withdraw(control, role)
    supervise(control)
    ended = wait_for_end(control, name)
    assert ended["state"] == "JOB_STATE_FAILED" and words in ended["error"]["message"]


def test_a_job_with_a_fit_account_succeeds(control: Control, supervise: Callable[[Control], Supervisor]) -> None:
    allow_everything(control)
    name = create(control, serviceAccount=EMAIL)
    supervise(control)
    ended = wait_for_end(control, name)
    assert ended["state"] == "JOB_STATE_SUCCEEDED" and ended["serviceAccount"] == EMAIL


def test_without_an_account_the_service_agent_runs_with_what_it_has(control: Control) -> None:
    create(control)
    withdraw(control, "roles/storage.objectAdmin")
    with pytest.raises(PermissionDenied, match=r"gcp-sa-vertex-tune.* may not read gs://data/train.jsonl"):
        create(control)


def test_a_disabled_account_and_one_of_another_project_are_refused(control: Control) -> None:
    allow_everything(control)
    with control.database.transaction() as connection:
        connection.execute(sa.update(accounts).where(accounts.c.email == EMAIL).values(disabled=True))
    with pytest.raises(FailedPrecondition, match=f"iam accounts enable {EMAIL}"):
        create(control, serviceAccount=EMAIL)
    add_project(control, "other")
    found = projects.find(control.database, "other")
    assert found is not None
    with control.database.transaction() as connection:
        foreign = account_store.create(connection, found, "foreign-account", "", 0.0).email
    messages = []
    for email in (foreign, foreign.replace("foreign", "unknown")):
        with pytest.raises(InvalidArgument) as caught:
            create(control, serviceAccount=email)
        messages.append(caught.value.message.replace(email, "E"))
    assert messages[0] == messages[1]
