"""Two projects cannot tell what the other one did: what depends on a user's bytes is remembered for their project."""

from __future__ import annotations

from pathlib import Path

import orjson

from sarto.configuration import Limits
from sarto.control import dataset_queries
from sarto.control.access.principal import Principal
from sarto.control.context import Control
from sarto.control.dataset_queries import DatasetCheck
from sarto.control.jobs import states
from sarto.control.jobs.job_row import job_of, plan_of
from sarto.control.models import custom_bases, resolution
from sarto.control.runs import artifacts, run_spec
from sarto.control.runs.workspace import Workspace
from sarto.control.scheduling import leases
from sarto.names import LocationName
from tests.control.homes import PARENT, add_project, create, member

OTHER = LocationName("other", "us-central1")
BASE = "gemini-2.5-flash"


def test_tokens_of_a_dataset_are_kept_for_each_project(control: Control) -> None:
    callers = [(PARENT, member(control), "data"), (OTHER, add_project(control, "other"), "data-other")]
    asked = [
        dataset_queries.question(
            control, caller, parent, DatasetCheck(base_model=BASE, training_dataset_uri=f"gs://{bucket}/train.jsonl")
        ).question
        for parent, caller, bucket in callers
    ]
    assert asked[0].training.digest == asked[1].training.digest
    assert asked[0].cache_folder != asked[1].cache_folder
    for parent, caller, bucket in callers:
        create(control, f"gs://{bucket}/train.jsonl", project=parent.project)
        lease = leases.claim(control.database, caller.email, Limits(concurrent_runs=9))
        assert lease is not None
        with control.database.reading() as connection:
            row = leases.hold(connection, lease)
        place = Workspace(control, lease, "")
        spec = run_spec.prepare(control, lease, job_of(row), plan_of(row), place)
        question = asked[callers.index((parent, caller, bucket))]
        assert place.places.path(spec.cache_folder) == control.places.path(question.cache_folder)
        with control.database.transaction() as connection:
            states.advance(connection, row, states.CANCELLED, control.database.now(connection))


def test_a_base_that_two_projects_bring_is_two_bases(control: Control) -> None:
    """A run's resident process and the worker's memory go by the base, so they are not shared either."""
    add_project(control, "other")
    entry = control.catalog.find("qwen/qwen3@qwen3-0.6b")
    config = orjson.dumps({"model_type": "qwen3"})
    files = {"config.json": config, "tokenizer.json": b"{}", "chat_template.jinja": b"", "model.safetensors": b"w"}
    found = []
    for bucket in ("data", "data-other"):
        for name, data in files.items():
            control.buckets.put_bytes(bucket, f"base/{name}", data)
        project = control.buckets.bucket(bucket).project
        found.append(custom_bases.find(control, project, f"gs://{bucket}/base/", entry.weights, "custom_base_model"))
        again = custom_bases.find(control, project, f"gs://{bucket}/base/", entry.weights, "custom_base_model")
        assert again.id == found[-1].id
    assert found[0].id != found[1].id
    assert control.custom_base(found[0].id).digest != control.custom_base(found[1].id).digest


def test_equal_adapters_of_two_projects_are_two(control: Control, tmp_path: Path) -> None:
    (tmp_path / "adapter_model.safetensors").write_bytes(b"equal")
    files = {"adapter_model.safetensors": "the digest"}
    ours, again, theirs = (artifacts.keep(control, project, tmp_path, files) for project in ("1", "1", "2"))
    assert ours == again and ours.digest != theirs.digest
    assert not (ours.folder / "adapter_model.safetensors").parent.samefile(theirs.folder)


def test_prompts_are_remembered_for_the_project_that_asks_the_project_that_answers(control: Control) -> None:
    add_project(control, "other")
    bare = f"publishers/google/models/{BASE}"
    tenants = []
    for project in ("demo", "other"):
        caller = member(control, project)
        by_id, by_number = (f"projects/{name}/locations/us-central1/{bare}" for name in (project, caller.project))
        found = [resolution.resolve(control, caller, name).tenant for name in (bare, by_id, by_number)]
        assert found[1] == found[2]
        tenants += found[:2]
    users = [Principal(f"{name}@example.com", "", "user") for name in ("ada", "ben")]
    tenants += [resolution.tenant_of(user, "") for user in users]  # they belong to no project: each is alone
    assert len(set(tenants)) == 6 and "" not in tenants
    assert len({resolution.tenant_of(user, "7") for user in users}) == 1
