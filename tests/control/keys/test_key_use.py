"""Which key a job may name, and what a job under one leaves, with the stand-in run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
import sqlalchemy as sa

from sarto.control.access import authorization, projects
from sarto.control.context import Control
from sarto.control.jobs import tuning_jobs
from sarto.control.keys import key_use, kms
from sarto.control.keys.key_use import ROLE
from sarto.control.runs import sealed_files, workspace
from sarto.control.runs.supervisor import Supervisor
from sarto.errors import FailedPrecondition, InvalidArgument, PermissionDenied
from sarto.names import LocationName, ResourceName
from sarto.schema.tuning_jobs import TuningJob
from sarto.storage.database.tables import checkpoint, job_event
from sarto.storage.encryption.envelope import is_sealed
from sarto.storage.encryption.key_service import KeyName
from tests.control.homes import PARENT, ROWS, add_project, create, job_body, member, state, wait_for_end, wait_until

KEY = "projects/demo/locations/us-central1/keyRings/ring/cryptoKeys/key"
SPEC = {"encryptionSpec": {"kmsKeyName": KEY}}


def make_key(
    control: Control, project: str = "demo", location: str = "us-central1", *, allowed: bool = True
) -> KeyName:
    owner, place = member(control, project), LocationName(project, location)
    service = control.sealer.keys
    kms.create_ring(service, owner, place, "ring")
    body = {"destroyScheduledDuration": "0s"}
    name = KeyName.parse(kms.create_key(service, owner, KeyName(project, location, "ring"), "key", body)["name"])
    if allowed:
        allow(control, name)
    return name


def allow(control: Control, name: KeyName, agent_of: str = "") -> None:
    """The service agent of the key's own project, or of another, may use it."""
    found = projects.find(control.database, agent_of or name.project)
    assert found is not None
    with control.database.transaction() as connection:
        authorization.bind(connection, str(name), ROLE, f"serviceAccount:{found.agent}")
    control.database.rights_changes += 1


def move(control: Control, name: KeyName, to: str) -> None:
    version = name.version_name(1)
    if to == "DESTROYED":
        kms.destroy(control.sealer.keys, member(control), version)
    else:
        kms.set_state(control.sealer.keys, member(control), version, to)


def refusal(control: Control, **fields: Any) -> str:
    with pytest.raises(InvalidArgument) as caught:
        create(control, **fields)
    assert [one.field for one in caught.value.violations] == ["tuning_job.encryption_spec.kms_key_name"]
    return caught.value.violations[0].description


def named(key: str) -> dict[str, Any]:
    return {"encryptionSpec": {"kmsKeyName": key}}


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("", "Required field"),
        ("my-key", "cryptoKeys/KEY"),
        (f"{KEY}/cryptoKeyVersions/1", "cryptoKeys/KEY"),
        (KEY.rpartition("/cryptoKeys")[0], "cryptoKeys/KEY"),
        (KEY.replace("us-central1", "europe-west4"), "The key is in europe-west4; a key in us-central1 is needed"),
        (KEY.replace("cryptoKeys/key", "cryptoKeys/other"), "not found"),
        (KEY.replace("demo", "nowhere"), "not found"),
    ],
)
def test_a_key_that_cannot_be_had_is_refused_with_the_reason(control: Control, key: str, words: str) -> None:
    make_key(control)
    assert words in refusal(control, **named(key))


def test_there_are_no_keys_in_the_global_location(control: Control) -> None:
    name = make_key(control, location="global")
    with pytest.raises(InvalidArgument, match='"global" has no keys'):
        key_use.canonical(control, name.project, "global", str(name), key_use.FIELD)


def test_the_service_agent_must_be_allowed_and_the_refusal_says_how(control: Control) -> None:
    name = make_key(control, allowed=False)
    with pytest.raises(PermissionDenied) as caught:
        create(control, **SPEC)
    assert f"{ROLE} --on {name}`" in caught.value.message and "sarto --project demo iam bind" in caught.value.message
    allow(control, name)
    create(control, **SPEC)


def test_another_projects_key_does_not_exist_until_its_owner_lets_the_agent_use_it(control: Control) -> None:
    add_project(control, "other")
    name = make_key(control, "other")
    key = KEY.replace("demo", "other")
    assert "not found" in refusal(control, **named(key))
    allow(control, name, "demo")
    create(control, **named(key))


def test_a_disabled_and_a_destroyed_key_take_no_new_jobs(control: Control) -> None:
    name = make_key(control)
    for to in ("DISABLED", "DESTROYED"):
        move(control, name, to)
        with pytest.raises(FailedPrecondition, match=to):
            create(control, **SPEC)


def test_data_that_its_bucket_keeps_sealed_is_for_jobs_with_a_key(control: Control) -> None:
    name = make_key(control)
    control.buckets.put_bytes("data", "sealed.jsonl", ROWS, kms_key=str(name))
    with pytest.raises(InvalidArgument, match="give the job an encryptionSpec"):
        create(control, "sealed")
    create(control, "sealed", **SPEC)


def all_plain(control: Control, folder: Path) -> list[str]:
    return [str(path) for path in folder.rglob("*") if path.is_file() and not is_sealed(path)]


def test_a_keyed_job_leaves_sealed_files_alone(control: Control, supervise: Callable[[Control], Supervisor]) -> None:
    make_key(control)
    supervise(control)
    name = create(control, **SPEC)
    job = wait_for_end(control, name)
    assert job["state"] == "JOB_STATE_SUCCEEDED", job
    folder = control.job_folder(name.id)
    left = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert {
        "data/training.jsonl",
        "1/spec.json",
        "1/log.txt",
        "1/progress.jsonl",
        "1/result.json",
        "resume/step",
    } <= left
    assert all_plain(control, folder) == [] and all_plain(control, control.home / "adapters") == []
    with control.database.reading() as connection:
        made = connection.execute(sa.select(checkpoint).order_by(checkpoint.c.step)).all()
    opened = sealed_files.adapter(control, made[0].adapter_folder)
    weights = f"weights of {name} at 2".replace("demo", member(control).project)
    assert (opened / "adapter_model.safetensors").read_text() == weights
    stored = control.buckets.resolve(f"{made[0].artifact_uri}adapter_model.safetensors")
    assert stored.fields.kms_key.endswith("/cryptoKeys/key")
    with control.buckets.open(stored) as file:
        assert file.read().decode() == weights
    assert sealed_files.read(control, name.id, folder / "data" / "training.jsonl") == ROWS
    wait_until(lambda: not list(control.sealer.private.root.glob(f"*/{name.id}-*")))


def test_a_sealed_file_put_in_anothers_place_is_refused(
    control: Control, supervise: Callable[[Control], Supervisor]
) -> None:
    make_key(control)
    supervise(control)
    name = create(control, **SPEC)
    wait_for_end(control, name)
    folder = control.job_folder(name.id)
    (folder / "1" / "result.json").replace(folder / "1" / "spec.json")
    with pytest.raises(FailedPrecondition, match="changed"):
        sealed_files.read(control, name.id, folder / "1" / "spec.json")


def kinds(control: Control, name: ResourceName) -> list[str]:
    with control.database.reading() as connection:
        query = sa.select(job_event.c.kind).where(job_event.c.job == name.id).order_by(job_event.c.sequence)
        return list(connection.execute(query).scalars())


def test_a_paused_job_is_cancelled_at_once_and_fails_when_its_key_is_destroyed(
    any_control: Control, supervise: Callable[[Control], Supervisor]
) -> None:
    control = any_control
    name = make_key(control)
    supervise(control)
    first = create(control, "slow", **SPEC)
    wait_until(lambda: "checkpoint" in kinds(control, first))
    move(control, name, "DISABLED")
    wait_until(lambda: state(control, first) == "PAUSED")
    tuning_jobs.cancel(control, member(control), first)
    assert state(control, first) == "CANCELLED"
    move(control, name, "ENABLED")
    second = create(control, "slow", **SPEC)
    wait_until(lambda: "parameters" in kinds(control, second))
    move(control, name, "DESTROYED")
    job = wait_for_end(control, second)
    assert job["state"] == "JOB_STATE_FAILED" and job["error"]["code"] == 9 and "DESTROYED" in job["error"]["message"]


def test_a_job_waits_for_its_key_before_it_begins_and_says_so_once(
    control: Control, supervise: Callable[[Control], Supervisor]
) -> None:
    name = make_key(control)
    job = create(control, **SPEC)
    move(control, name, "DISABLED")
    supervise(control)
    wait_until(lambda: "waiting" in kinds(control, job))
    assert state(control, job) == "PENDING"
    move(control, name, "ENABLED")
    assert wait_for_end(control, job)["state"] == "JOB_STATE_SUCCEEDED"
    assert kinds(control, job).count("waiting") == 1


def test_a_model_is_tuned_further_under_its_own_key_alone(
    control: Control, supervise: Callable[[Control], Supervisor]
) -> None:
    make_key(control)
    supervise(control)
    done = wait_for_end(control, create(control, **SPEC))
    source = {"preTunedModel": {"tunedModelName": done["tunedModel"]["model"]}}
    assert "name that key" in refusal(control, **source)
    again = wait_for_end(control, create(control, **source, **SPEC))
    assert again["state"] == "JOB_STATE_SUCCEEDED", again
    plain = wait_for_end(control, create(control))
    body = job_body(preTunedModel={"tunedModelName": plain["tunedModel"]["model"]}, **SPEC)
    with pytest.raises(InvalidArgument, match="has no key; name none"):
        tuning_jobs.create(control, member(control), PARENT, TuningJob.read(body, "tuning_job"))


def test_a_fault_of_the_data_is_told_without_the_data(
    control: Control, supervise: Callable[[Control], Supervisor]
) -> None:
    said = {"code": 3, "message": 'a.jsonl: 3 of 9 rows cannot be used. The first:\n  line 3: "canary" is no role'}
    said["details"] = [{"@type": "x", "fieldViolations": [{"field": "a.jsonl line 3", "description": "canary"}]}]
    told = workspace.status_without_quotes(said)
    assert b"canary" not in orjson.dumps(told)
    assert told["message"].startswith("a.jsonl: 3 of 9 rows cannot be used.") and b"line 3" in orjson.dumps(told)
