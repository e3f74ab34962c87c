"""Jobs run to their end by real child processes, and what happens when runs or supervisors are killed."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from sarto.contract.tuning_run import RunSpec
from sarto.control.context import Control
from sarto.control.jobs import events, tuning_jobs
from sarto.control.models import registry
from sarto.control.runs.supervisor import Supervisor
from sarto.errors import InvalidArgument, NotFound
from sarto.names import ResourceName, parse_gs_uri, parse_resource
from sarto.schema.tuning_jobs import TuningJob
from tests.control.homes import create, member, read, stand_in_executor, state, wait_for_end, wait_until

Supervise = Callable[[Control], Supervisor]


def kinds(control: Control, name: ResourceName) -> list[str]:
    return [event["kind"] for event in events.list_events(control, member(control), name)[0]]


def run_processes(control: Control) -> list[int]:
    """Ids of the stand-in processes that work in this home."""
    marker = str(control.home).encode()
    found = []
    for folder in Path("/proc").iterdir():
        try:
            if (
                folder.name.isdigit()
                and marker in (words := (folder / "cmdline").read_bytes())
                and b"stand_in" in words
            ):
                found.append(int(folder.name))
        except OSError:
            continue  # it ended while we looked
    return found


def test_a_job_succeeds_with_model_endpoints_statistics_and_story(any_control: Control, supervise: Supervise) -> None:
    supervise(any_control)
    name = create(any_control, labels={"team": "search"}, tunedModelDisplayName="tickets")
    job = wait_for_end(any_control, name)
    assert job["state"] == "JOB_STATE_SUCCEEDED"
    TuningJob.read(job)
    model = parse_resource(job["tunedModel"]["model"], "models", versioned=True)
    assert model.version == "1"
    checkpoints = job["tunedModel"]["checkpoints"]
    assert [(c["checkpointId"], c["epoch"], c["step"]) for c in checkpoints] == [
        ("1", "1", "2"),
        ("2", "2", "4"),
        ("3", "3", "6"),
    ]
    assert job["tunedModel"]["endpoint"] == checkpoints[-1]["endpoint"]
    assert job["createTime"] <= job["startTime"] <= job["endTime"] == job["updateTime"]
    assert "tuningJobState" not in job
    assert "/metadataStores/default/contexts/tuning-experiment-" in job["experiment"]
    stats = job["tuningDataStats"]["supervisedTuningDataStats"]
    assert stats["tuningDatasetExampleCount"] == "20" and stats["truncatedExampleIndices"] == ["3"]
    metadata = job["tuningJobMetadata"]
    assert (metadata["completedStepCount"], metadata["completedEpochCount"]) == ("6", "3")
    assert metadata["effectiveParameters"]["reasons"]["epochCount"] == "few examples"
    assert kinds(any_control, name) == [
        "created", "started", "data", "parameters", "checkpoint", "checkpoint", "checkpoint", "succeeded",
    ]  # fmt: skip


def test_the_files_of_every_checkpoint_lie_below_the_artifact_uri(control: Control, supervise: Supervise) -> None:
    supervise(control)
    job = wait_for_end(control, create(control))
    name = parse_resource(job["tunedModel"]["model"], "models", versioned=True)
    uri = registry.get(control, member(control), name)["artifactUri"]
    bucket, prefix = parse_gs_uri(uri, "uri")
    listed = control.buckets.list(bucket, prefix, project=member(control).project).objects
    assert [found.name.removeprefix(prefix) for found in listed] == [
        f"{checkpoint}/{file}" for checkpoint in "123" for file in ("adapter_config.json", "adapter_model.safetensors")
    ]
    deployed = registry.resolve(control, member(control), job["tunedModel"]["endpoint"])
    kept = (control.adapter_folder(deployed.adapter_folder) / "adapter_model.safetensors").read_bytes()
    assert control.buckets.path(listed[-1]).read_bytes() == kept
    assert hashlib.sha256(kept).hexdigest() == listed[-1].sha256


def test_an_open_model_is_written_to_its_output_uri_in_the_documented_layout(
    control: Control, supervise: Supervise
) -> None:
    supervise(control)
    name = create(
        control,
        baseModel="huggingfacetb/smollm2@smollm2-135m-instruct",
        outputUri="gs://data/out/",
        spec={"hyperParameters": {"learningRate": 1e-4, "batchSize": 2}, "exportLastCheckpointOnly": True},
    )
    job = wait_for_end(control, name)
    assert [c["checkpointId"] for c in job["tunedModel"]["checkpoints"]] == ["3"]
    assert job["tuningJobMetadata"]["effectiveParameters"]["learningRate"] == 1e-4
    folder = "out/postprocess/node-0/checkpoints/"
    listed = control.buckets.list("data", "out/").objects
    assert {found.name.rpartition("/")[0] for found in listed} == {f"{folder}checkpoint-3", f"{folder}final"}


def test_a_tuned_model_tuned_further_becomes_its_next_version(control: Control, supervise: Supervise) -> None:
    supervise(control)
    first = wait_for_end(control, create(control, tunedModelDisplayName="tickets"))["tunedModel"]["model"]
    source = {"tunedModelName": first, "checkpointId": "2"}
    name = create(control, preTunedModel=source)
    job = wait_for_end(control, name)
    assert job["tunedModel"]["model"] == first.replace("@1", "@2")
    assert job["preTunedModel"] == {**source, "baseModel": "gemini-2.0-flash-001"}
    spec = (control.job_folder(name.id) / "1" / "spec.json").read_text()
    parent = registry.resolve(control, member(control), f"{first}")
    second = control.buckets.list("sarto-demo-models", "").objects
    assert '"parent_adapter":' in spec and parent.adapter_folder not in spec
    assert len(second) == 12
    new = wait_for_end(control, create(control, preTunedModel=source, tunedModelDisplayName="other"))
    assert new["tunedModel"]["model"].endswith("@1") and new["tunedModel"]["model"] != first


@pytest.mark.parametrize("value", ["true", "false"])
def test_switches_given_as_labels_reach_the_run(control: Control, supervise: Supervise, value: str) -> None:
    supervise(control)
    labels = {"sarto-stop-early": value, "sarto-low-memory": value}
    name = create(control, labels=labels, spec={"validationDatasetUri": "gs://data/train.jsonl"})
    assert labels.items() <= wait_for_end(control, name)["labels"].items()
    spec = RunSpec.model_validate_json((control.job_folder(name.id) / "1" / "spec.json").read_bytes())
    assert (spec.stop_early, spec.low_memory) == (value == "true", value == "true")


def test_a_quantised_base_belongs_to_the_job_its_model_and_whatever_continues_it(
    control: Control, supervise: Supervise
) -> None:
    supervise(control)

    def run_of(name: ResourceName) -> RunSpec:
        return RunSpec.model_validate_json((control.job_folder(name.id) / "1" / "spec.json").read_bytes())

    label = {"sarto-quantisation": "nf4"}
    plain, packed = create(control), create(control, labels=label)
    first = wait_for_end(control, packed)["tunedModel"]["model"]
    wait_for_end(control, plain)
    base = run_of(plain).base
    assert run_of(packed).base == base.model_copy(update={"quantisation": "nf4", "digest": f"{base.digest}-nf4"})
    found = registry.resolve(control, member(control), first)
    assert control.base(found.weights) == control.places.located(run_of(packed).base)
    further = create(control, preTunedModel={"tunedModelName": first})
    job = wait_for_end(control, further)
    assert label.items() <= job["labels"].items()
    assert run_of(further).base == run_of(packed).base
    with pytest.raises(InvalidArgument, match="tuned on its base quantised to nf4; leave the label out"):
        create(control, preTunedModel={"tunedModelName": first}, labels={"sarto-quantisation": "int8"})


def test_a_fault_in_the_data_fails_the_job_at_once(control: Control, supervise: Supervise) -> None:
    supervise(control)
    name = create(control, "fault")
    job = wait_for_end(control, name)
    assert job["state"] == "JOB_STATE_FAILED"
    assert job["error"] == {"code": 3, "message": "fault.jsonl line 7: no reply"}
    assert kinds(control, name) == ["created", "started", "failed"]


def test_a_run_that_is_killed_is_resumed_under_the_next_epoch(any_control: Control, supervise: Supervise) -> None:
    supervise(any_control)
    name = create(any_control, "die-once")
    job = wait_for_end(any_control, name)
    assert job["state"] == "JOB_STATE_SUCCEEDED"
    assert [c["checkpointId"] for c in job["tunedModel"]["checkpoints"]] == ["1", "2", "3"]
    told = kinds(any_control, name)
    assert told.count("lost") == 1 and told.count("started") == 2 and told.count("checkpoint") == 3
    assert told[-1] == "succeeded"


def test_a_job_whose_runs_all_die_fails_as_our_fault(control: Control, supervise: Supervise) -> None:
    supervise(control)
    job = wait_for_end(control, create(control, "die"))
    assert job["error"]["code"] == 13
    assert "lost the run 3 times" in job["error"]["message"] and "signal 9" in job["error"]["message"]


def test_a_job_whose_runs_all_raise_keeps_its_checkpoints_and_says_what_was_raised_but_not_its_words(
    control: Control, supervise: Supervise
) -> None:
    supervise(control)
    name = create(control, "raise")
    job = wait_for_end(control, name)
    assert job["state"] == "JOB_STATE_FAILED" and job["error"]["code"] == 13
    assert "lost the run 3 times" in job["error"]["message"] and "(RuntimeError)" in job["error"]["message"]
    assert "own words" not in str(job)
    told = kinds(control, name)
    assert (told.count("started"), told.count("lost")) == (3, 2) and told.count("checkpoint") >= 2
    for checkpoint in job["tunedModel"]["checkpoints"]:
        found = registry.resolve(control, member(control), checkpoint["endpoint"])
        assert control.adapter_folder(found.adapter_folder).is_dir()


@pytest.mark.parametrize("data", ["slow", "deaf"])
def test_cancelling_a_running_job_stops_its_process(any_control: Control, supervise: Supervise, data: str) -> None:
    supervise(any_control)
    name = create(any_control, data)
    wait_until(lambda: state(any_control, name) == "RUNNING" and bool(run_processes(any_control)))
    begun = time.monotonic()
    tuning_jobs.cancel(any_control, member(any_control), name)
    assert state(any_control, name) == "CANCELLING"
    job = wait_for_end(any_control, name)
    assert time.monotonic() - begun < 5.0
    assert job["state"] == "JOB_STATE_CANCELLED" and job["error"]["code"] == 1
    assert run_processes(any_control) == []
    told = kinds(any_control, name)  # what the run had said by then may be told in between
    assert told[-1] == "cancelled" and told.count("cancelling") == 1


def test_stopping_the_supervisor_ends_runs_and_the_next_one_picks_them_up(
    control: Control, supervise: Supervise
) -> None:
    first = Supervisor(control, stand_in_executor())
    first.start()
    name = create(control, "slow", spec={"hyperParameters": {"epochCount": 1}})
    wait_until(lambda: bool(run_processes(control)))
    first.stop()
    assert run_processes(control) == [] and state(control, name) == "RUNNING"
    supervise(control)
    job = wait_for_end(control, name)
    assert job["state"] == "JOB_STATE_SUCCEEDED"
    assert kinds(control, name).count("started") == 2 and "lost" not in kinds(control, name)


def test_a_killed_supervisor_takes_its_run_along_and_the_job_still_ends_once(
    any_control: Control, supervise: Supervise
) -> None:
    name = create(any_control, "slow", spec={"hyperParameters": {"epochCount": 1}})
    program = (
        "import sys, time, pathlib\n"
        "from tests.control.homes import open_control, stand_in_executor\n"
        "from sarto.control.runs.supervisor import Supervisor\n"
        "Supervisor(open_control(pathlib.Path(sys.argv[1]), sys.argv[2]), stand_in_executor()).start()\n"
        "time.sleep(60)\n"
    )
    database_url = any_control.database.url if not any_control.database.is_sqlite else ""
    other = subprocess.Popen([sys.executable, "-c", program, str(any_control.home), database_url])
    try:
        wait_until(lambda: state(any_control, name) == "RUNNING" and bool(run_processes(any_control)))
    finally:
        other.kill()
        other.wait()
    wait_until(lambda: run_processes(any_control) == [], 5.0)
    supervise(any_control)
    job = wait_for_end(any_control, name)
    assert job["state"] == "JOB_STATE_SUCCEEDED"
    told = kinds(any_control, name)
    assert told.count("succeeded") == 1 and told.count("started") == 2
    assert len(registry.list_models(any_control, member(any_control), name.parent)[0]) == 1


def test_a_run_is_given_no_secrets(control: Control, supervise: Supervise, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SARTO_SECRET", "x")
    supervise(control)
    name = create(control, "slow")
    wait_until(lambda: bool(run_processes(control)))
    environment = Path(f"/proc/{run_processes(control)[0]}/environ").read_bytes()
    assert b"SARTO_SECRET" not in environment and b"PATH=" in environment
    tuning_jobs.cancel(control, member(control), name)
    wait_for_end(control, name)


def test_progress_is_seen_while_the_job_runs(control: Control, supervise: Supervise) -> None:
    supervise(control)
    name = create(control, "slow")
    wait_until(lambda: read(control, name).get("tuningJobState") == "TUNING_JOB_STATE_TUNING")
    job = read(control, name)
    assert job["tuningJobMetadata"]["totalStepCount"] == "6" and "tuningDataStats" in job
    tuning_jobs.cancel(control, member(control), name)
    wait_for_end(control, name)


def test_deleting_a_cancelled_job_removes_the_checkpoints_it_had_published(
    control: Control, supervise: Supervise
) -> None:
    supervise(control)
    name = create(control, "slow")
    wait_until(lambda: "tunedModel" in read(control, name))
    endpoint = read(control, name)["tunedModel"]["checkpoints"][0]["endpoint"]
    folder = control.adapter_folder(registry.resolve(control, member(control), endpoint).adapter_folder)
    tuning_jobs.cancel(control, member(control), name)
    wait_for_end(control, name)
    assert folder.exists() and control.buckets.list("sarto-demo-models").objects
    tuning_jobs.delete(control, member(control), name)
    assert not folder.exists() and not control.job_folder(name.id).exists()
    assert control.buckets.list("sarto-demo-models").objects == ()
    with pytest.raises(NotFound):
        registry.resolve(control, member(control), endpoint)
