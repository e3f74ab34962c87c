"""The registry after a real run of the stand-in: models, versions, endpoints, operations, names that answer, rebase."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sarto.control import operations
from sarto.control.context import Control
from sarto.control.jobs import rebase, tuning_jobs
from sarto.control.models import endpoints, registry
from sarto.control.runs.supervisor import Supervisor
from sarto.errors import FailedPrecondition, InvalidArgument, NotFound, PermissionDenied, Unimplemented
from sarto.names import LocationName, ResourceName, parse_resource
from sarto.schema.models import Endpoint, Model
from sarto.schema.tuning_jobs import RebaseTunedModelRequest
from tests.control.homes import PARENT, add_project, create, make_control, member, read, stand_in_executor, wait_for_end


@pytest.fixture
def tuned(tmp_path: Path) -> Iterator[tuple[Control, dict[str, Any]]]:
    """A home with one finished job, `tickets` with label team=search."""
    control = make_control(tmp_path)
    supervisor = Supervisor(control, stand_in_executor())
    supervisor.start()
    job = wait_for_end(control, create(control, tunedModelDisplayName="tickets", labels={"team": "search"}))
    yield control, job
    supervisor.stop()
    control.database.close()


Tuned = tuple[Control, dict[str, Any]]


def model_name(job: dict[str, Any]) -> ResourceName:
    return parse_resource(job["tunedModel"]["model"], "models", versioned=True)


def test_a_model_carries_what_clients_look_for(tuned: Tuned) -> None:
    control, job = tuned
    found = registry.get(control, member(control), model_name(job))
    Model.read(found)
    assert found["name"] == job["tunedModel"]["model"].removesuffix("@1")
    assert found["versionId"] == "1" and found["versionAliases"] == ["default"]
    assert found["labels"] == {
        "team": "search", "sarto-base": "smollm2-135m-instruct", "tune-type": "sft",
        "google-vertex-llm-tuning-base-model-id": "gemini-2.0-flash-001",
    }  # fmt: skip
    assert found["defaultCheckpointId"] == "3" and len(found["checkpoints"]) == 3
    assert {d["endpoint"] for d in found["deployedModels"]} == {c["endpoint"] for c in job["tunedModel"]["checkpoints"]}
    for name in ("1", "default"):
        assert registry.get(control, member(control), model_name(job).__class__(*_at(job, name))) == found


def _at(job: dict[str, Any], version: str) -> tuple[str, str, str, str, str]:
    name = model_name(job)
    return name.project, name.location, name.collection, name.id, version


@pytest.mark.parametrize(
    ("filter_", "count"),
    [("labels.tune-type:*", 1), ("labels.team=x", 0), ("display_name=tickets", 1), ("NOT displayName:tick", 0)],
)
def test_models_can_be_filtered(tuned: Tuned, filter_: str, count: int) -> None:
    control, _ = tuned
    assert len(registry.list_models(control, member(control), PARENT, filter=filter_)[0]) == count
    assert len(endpoints.list_endpoints(control, member(control), PARENT, filter="labels.team=search")[0]) == 3


def test_endpoint_pages_continue_where_they_ended(tuned: Tuned) -> None:
    control, _ = tuned
    seen, token = [], ""
    for _ in range(3):
        page, token = endpoints.list_endpoints(control, member(control), PARENT, 1, token)
        seen += [found["name"] for found in page]
    assert len(set(seen)) == 3 and seen == sorted(seen, reverse=True) and token == ""


def test_a_model_is_changed_only_where_it_may_be(tuned: Tuned) -> None:
    control, job = tuned
    name, caller = model_name(job), member(control)
    given = Model.read({"displayName": "new", "description": "text", "defaultCheckpointId": "2"})
    changed = registry.update(control, caller, name, given)
    assert (changed["displayName"], changed["description"], changed["defaultCheckpointId"]) == ("new", "text", "2")
    assert registry.resolve(control, caller, str(name)).checkpoint_id == "2"
    assert registry.update(control, caller, name, Model(), ["description"]).get("description") is None
    replaced = registry.update(control, caller, name, Model(display_name="whole"), ["*"])
    assert replaced["displayName"] == "whole" and not replaced.get("description")
    assert replaced["defaultCheckpointId"] == changed["defaultCheckpointId"]
    for fault, mask in ((Model(default_checkpoint_id="9"), ()), (Model(), ("artifact_uri",)), (Model(), ())):
        with pytest.raises(InvalidArgument):
            registry.update(control, caller, name, fault, mask)


def test_every_name_of_a_tuned_model_leads_to_its_adapter(tuned: Tuned) -> None:
    control, job = tuned
    caller, model, endpoint = member(control), job["tunedModel"]["model"], job["tunedModel"]["endpoint"]
    by_endpoint = registry.resolve(control, caller, endpoint)
    assert by_endpoint.checkpoint_id == "3" and by_endpoint.weights == "smollm2-135m-instruct"
    assert (control.adapter_folder(by_endpoint.adapter_folder) / "adapter_config.json").exists()
    digits = endpoint.rpartition("/")[2]
    for name in (
        model,
        model.replace("@1", "@default"),
        model.removesuffix("@1"),
        endpoint.replace(caller.project, "demo"),
        f"{PARENT}/publishers/google/models/{digits}",
        f"{PARENT}/publishers/google/models/{model.rpartition('/')[2]}",
    ):
        assert registry.resolve(control, caller, name).adapter_digest == by_endpoint.adapter_digest, name
    first = registry.resolve(control, caller, job["tunedModel"]["checkpoints"][0]["endpoint"])
    assert first.checkpoint_id == "1" and first.adapter_digest != by_endpoint.adapter_digest


@pytest.mark.parametrize(
    "name",
    ["gemini-2.0-flash-001", "publishers/google/models/gemini-2.0-flash-001",
     "projects/demo/locations/europe-west4/publishers/google/models/gemini-2.0-flash-001"],
)  # fmt: skip
def test_a_base_model_answers_without_an_adapter(control: Control, name: str) -> None:
    found = registry.resolve(control, member(control), name)
    assert (found.weights, found.adapter_digest) == ("smollm2-135m-instruct", "")


def test_a_name_from_another_region_says_where_it_is(tuned: Tuned) -> None:
    control, job = tuned
    for name in (job["tunedModel"]["endpoint"], job["tunedModel"]["model"]):
        with pytest.raises(NotFound, match="it is in us-central1, not in europe-west4"):
            registry.resolve(control, member(control), name.replace("us-central1", "europe-west4"))


def test_unknown_names_and_strangers_are_told_apart_from_nothing(tuned: Tuned) -> None:
    control, job = tuned
    stranger = add_project(control, "other")
    with pytest.raises(PermissionDenied):
        registry.resolve(control, stranger, job["tunedModel"]["endpoint"])
    for name in ("gemini-9", f"{PARENT}/endpoints/7", f"{PARENT}/models/7", f"{job['tunedModel']['model']}2"):
        with pytest.raises(NotFound):
            registry.resolve(control, member(control), name)
    with pytest.raises(InvalidArgument):
        registry.resolve(control, member(control), "projects/demo/locations/us-central1/tuningJobs/7")


def test_an_endpoint_is_undeployed_before_it_is_deleted(tuned: Tuned) -> None:
    control, job = tuned
    caller, name = member(control), parse_resource(job["tunedModel"]["endpoint"], "endpoints")
    found = endpoints.get(control, caller, name)
    Endpoint.read(found)
    assert found["deployedModels"][0]["model"] == job["tunedModel"]["model"].removesuffix("@1")
    with pytest.raises(FailedPrecondition, match="undeploy"):
        endpoints.delete(control, caller, name)
    done = endpoints.undeploy(control, caller, name, found["deployedModels"][0]["id"])
    assert done["done"] and operations.get(control, caller, done["name"]) == done
    with pytest.raises(FailedPrecondition, match="no deployed model"):
        registry.resolve(control, caller, str(name))
    endpoints.delete(control, caller, name)
    with pytest.raises(NotFound):
        endpoints.get(control, caller, name)


def test_an_endpoint_of_ones_own_answers_as_the_model_that_is_deployed_on_it(tuned: Tuned) -> None:
    control, job = tuned
    caller, source = member(control), model_name(job)
    given = Endpoint(display_name="stable", labels={"team": "a"})
    made = endpoints.create(control, caller, PARENT, given)["response"]
    name = parse_resource(made["name"], "endpoints")
    assert made["displayName"] == "stable" and "deployedModels" not in endpoints.get(control, caller, name)
    with pytest.raises(FailedPrecondition, match="no deployed model"):
        registry.resolve(control, caller, str(name))
    with pytest.raises(NotFound, match="no checkpoint"):
        endpoints.deploy(control, caller, name, source, "99")
    endpoints.deploy(control, caller, name, source, "1")
    assert registry.resolve(control, caller, str(name)).checkpoint_id == "1"
    with pytest.raises(FailedPrecondition, match="undeploy"):
        endpoints.deploy(control, caller, name, source)
    endpoints.undeploy(control, caller, name, name.id)
    endpoints.deploy(control, caller, name, source)
    assert (
        registry.resolve(control, caller, str(name)).checkpoint_id
        == registry.get(control, caller, source)["defaultCheckpointId"]
    )
    assert str(name) in [one["endpoint"] for one in registry.get(control, caller, source)["deployedModels"]]
    registry.delete(control, caller, source)
    with pytest.raises(NotFound):
        endpoints.get(control, caller, name)


def test_words_of_endpoints_and_models_are_changed_and_checked(tuned: Tuned) -> None:
    control, job = tuned
    caller, name = member(control), parse_resource(job["tunedModel"]["endpoint"], "endpoints")
    before = endpoints.get(control, caller, name)
    changed = endpoints.update(
        control, caller, name, Endpoint(display_name="x", description="d"), frozenset({"display_name"})
    )
    assert changed["displayName"] == "x" and "description" not in changed
    assert changed["deployedModels"][0]["checkpointId"] == before["deployedModels"][0]["checkpointId"]
    for given, mask in (
        (Endpoint(labels={"Bad": "x"}), frozenset[str]()),
        (Endpoint(display_name="x" * 129), frozenset[str]()),
        (Endpoint(), frozenset[str]()),
        (Endpoint(), frozenset({"traffic_split"})),
    ):
        with pytest.raises(InvalidArgument):
            endpoints.update(control, caller, name, given, mask)
    with pytest.raises(InvalidArgument, match="Bad"):
        registry.update(control, caller, model_name(job), Model(labels={"Bad": "x"}))


def test_deleting_a_model_removes_its_endpoints_and_files(tuned: Tuned) -> None:
    control, job = tuned
    caller, name = member(control), model_name(job)
    folder = control.adapter_folder(registry.resolve(control, caller, str(name)).adapter_folder)
    done = registry.delete(control, caller, name)
    assert done["done"] and done["response"]["@type"].endswith("Empty")
    with pytest.raises(NotFound):
        registry.get(control, caller, name)
    assert endpoints.list_endpoints(control, caller, PARENT)[0] == []
    assert control.buckets.list("sarto-demo-models").objects == () and not folder.exists()
    assert read(control, parse_resource(job["name"], "tuningJobs"))["state"] == "JOB_STATE_SUCCEEDED"


def test_versions_have_aliases_and_only_others_than_the_default_can_go(tuned: Tuned) -> None:
    control, job = tuned
    caller, first = member(control), model_name(job)
    wait_for_end(control, create(control, preTunedModel={"tunedModelName": str(first)}))
    second = ResourceName(*_at(job, "2"))
    listed, _ = registry.list_versions(control, caller, first)
    assert [(v["versionId"], v.get("versionAliases")) for v in listed] == [("2", ["default"]), ("1", None)]
    registry.merge_version_aliases(control, caller, first, ["stable", "default"])
    assert registry.get(control, caller, ResourceName(*_at(job, "stable")))["versionId"] == "1"
    registry.merge_version_aliases(control, caller, second, ["stable"])
    assert registry.resolve(control, caller, str(ResourceName(*_at(job, "stable")))).version == 2
    assert registry.resolve(control, caller, str(ResourceName(*_at(job, "")))).version == 1
    with pytest.raises(FailedPrecondition, match="default"):
        registry.delete_version(control, caller, first)
    registry.delete_version(control, caller, second)
    assert [v["versionId"] for v in registry.list_versions(control, caller, first)[0]] == ["1"]
    for wrong in (["-default"], ["7"], ["a/b"]):
        with pytest.raises(InvalidArgument):
            registry.merge_version_aliases(control, caller, first, wrong)


def test_operations_are_read_listed_waited_for_and_forgotten(tuned: Tuned) -> None:
    control, job = tuned
    caller = member(control)
    name = registry.delete(control, caller, model_name(job))["name"]
    assert operations.get(control, caller, name)["done"]
    assert operations.list_operations(control, caller, str(PARENT))[0][0]["name"] == name
    assert len(operations.list_operations(control, caller, name.partition("/operations/")[0])[0]) == 1
    operations.cancel(control, caller, name)
    operations.delete(control, caller, name)
    with pytest.raises(NotFound):
        operations.get(control, caller, name)
    with pytest.raises(InvalidArgument):
        operations.get(control, caller, f"{PARENT}/models/7")


def test_rebase_tunes_the_recorded_data_on_another_base(tuned: Tuned) -> None:
    control, job = tuned
    caller = member(control)
    body = {"tunedModelRef": {"tunedModel": job["tunedModel"]["model"]}, "tuningJob": {"baseModel": "gemini-2.5-flash"}}
    done = rebase.rebase(control, caller, PARENT, RebaseTunedModelRequest.read(body))
    made = wait_for_end(control, parse_resource(done["response"]["name"], "tuningJobs"))
    assert made["baseModel"] == "gemini-2.5-flash" and made["state"] == "JOB_STATE_SUCCEEDED"
    assert made["supervisedTuningSpec"] == job["supervisedTuningSpec"] and made["labels"] == job["labels"]
    by_job = RebaseTunedModelRequest.read({"tunedModelRef": {"tuningJob": job["name"]}})
    assert rebase.rebase(control, caller, PARENT, by_job)["response"]["baseModel"] == "gemini-2.0-flash-001"
    for body, fault in (
        ({}, InvalidArgument),
        ({"tunedModelRef": {"pipelineJob": "x"}}, Unimplemented),
        ({"tunedModelRef": {"tuningJob": job["name"]}, "deployToSameEndpoint": True}, Unimplemented),
    ):
        with pytest.raises(fault):
            rebase.rebase(control, caller, PARENT, RebaseTunedModelRequest.read(body))
    tuning_jobs.delete(control, caller, parse_resource(job["name"], "tuningJobs"))
    with pytest.raises(FailedPrecondition, match="deleted"):
        rebase.rebase(
            control,
            caller,
            PARENT,
            RebaseTunedModelRequest.read({"tunedModelRef": {"tunedModel": job["tunedModel"]["model"]}}),
        )


def test_a_tuned_model_is_tuned_further_only_where_and_as_it_is(tuned: Tuned) -> None:
    control, job = tuned
    name = job["tunedModel"]["model"]
    with pytest.raises(InvalidArgument, match="is in us-central1"):
        create(control, preTunedModel={"tunedModelName": name}, location="europe-west4")
    with pytest.raises(InvalidArgument, match="size of the model it continues"):
        spec = {"hyperParameters": {"adapterSize": "ADAPTER_SIZE_FOUR"}}
        create(control, preTunedModel={"tunedModelName": name}, spec=spec)
    with pytest.raises(InvalidArgument, match='no checkpoint "7"'):
        create(control, preTunedModel={"tunedModelName": name, "checkpointId": "7"})
    assert LocationName("demo", "us-central1") == PARENT
