from __future__ import annotations

from uuid import uuid4

import pytest

from sarto.control.context import Control
from sarto.control.jobs import events, tuning_jobs
from sarto.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, PermissionDenied, Unimplemented
from sarto.names import LocationName, ResourceName
from sarto.schema.tuning_jobs import TuningJob
from tests.control.homes import PARENT, ROWS, add_project, create, job_body, member, read, state

OPEN = "huggingfacetb/smollm2@smollm2-135m-instruct"


def refusals(control: Control, body: dict[str, object]) -> dict[str, str]:
    """Field → message of every violation of a body."""
    with pytest.raises(InvalidArgument) as caught:
        tuning_jobs.create(control, member(control), PARENT, TuningJob.read(body, "tuning_job"))
    return {violation.field.removeprefix("tuning_job."): violation.description for violation in caught.value.violations}


def test_a_created_job_is_pending_and_reads_back_as_it_was_answered(any_control: Control) -> None:
    body = job_body(labels={"team": "search"}, tunedModelDisplayName="tickets", description="d")
    made = tuning_jobs.create(any_control, member(any_control), PARENT, TuningJob.read(body))
    stored = tuning_jobs.get(
        any_control, member(any_control), ResourceName("demo", PARENT.location, "tuningJobs", made["name"][-19:])
    )
    assert stored == made
    assert stored["state"] == "JOB_STATE_PENDING"
    assert stored["labels"] == {"team": "search", "sarto-base": "smollm2-135m-instruct"}
    assert stored["name"].startswith(f"projects/{member(any_control).project}/locations/us-central1/tuningJobs/")
    assert "experiment" not in stored and "tuningJobState" not in stored


def test_what_only_the_service_writes_is_ignored_in_a_request(control: Control) -> None:
    name = create(control, state="JOB_STATE_SUCCEEDED", name="x", experiment="y", createTime="2020-01-01T00:00:00Z")
    assert state(control, name) == "PENDING"
    assert "experiment" not in read(control, name)


def test_every_fault_of_a_request_is_named_at_once(control: Control) -> None:
    found = refusals(
        control,
        {
            "baseModel": "gemini-2.0-flash-001",
            "labels": {"Team": "x", "ok": "NO"},
            "tunedModelDisplayName": "x" * 129,
            "outputUri": "gs://data/out",
            "serviceAccount": "nobody",
            "supervisedTuningSpec": {
                "trainingDatasetUri": "gs://data/missing.jsonl",
                "validationDatasetUri": "https://example.com/x.jsonl",
                "hyperParameters": {
                    "epochCount": 0, "learningRateMultiplier": -1, "learningRate": 1e-4, "batchSize": 4,
                    "adapterSize": 4,
                },
            },
        },
    )  # fmt: skip
    parameters = "supervised_tuning_spec.hyper_parameters"
    assert set(found) == {
        "labels[Team]", "labels[ok]", "tuned_model_display_name", "output_uri", "service_account",
        "supervised_tuning_spec.training_dataset_uri", "supervised_tuning_spec.validation_dataset_uri",
        f"{parameters}.epoch_count", f"{parameters}.learning_rate_multiplier", f"{parameters}.learning_rate",
        f"{parameters}.batch_size", f"{parameters}.adapter_size",
    }  # fmt: skip
    assert "ADAPTER_SIZE_SIXTEEN is not supported" in found[f"{parameters}.adapter_size"]
    assert (
        "ADAPTER_SIZE_ONE, ADAPTER_SIZE_TWO, ADAPTER_SIZE_FOUR, ADAPTER_SIZE_EIGHT"
        in found[f"{parameters}.adapter_size"]
    )


@pytest.mark.parametrize(
    ("body", "field", "words"),
    [
        ({"baseModel": "gemini-9"}, "base_model", "Known: gemini-1.0-pro-002"),
        ({"supervisedTuningSpec": None}, "supervised_tuning_spec", "Required"),
        ({"baseModel": "translation-llm-002", "spec": {"hyperParameters": {"adapterSize": "ADAPTER_SIZE_EIGHT"}}},
         "supervised_tuning_spec.hyper_parameters.adapter_size", "use ADAPTER_SIZE_FOUR"),
        ({"baseModel": OPEN}, "output_uri", "required"),
        ({"baseModel": OPEN.partition("@")[0]}, "base_model", "not known"),
        ({"labels": {f"k{i}": "v" for i in range(65)}}, "labels", "65 labels"),
        ({"labels": {"sarto-base": "mine"}}, "labels[sarto-base]", "set by the service"),
        ({"labels": {"sarto-low-memory": "yes"}}, "labels[sarto-low-memory]", 'is "true" or "false"'),
        ({"labels": {"sarto-quantisation": "int4"}}, "labels[sarto-quantisation]", "one of int8, nf4"),
        ({"labels": {"sarto-stop-early": "true"}}, "labels[sarto-stop-early]", "name a validationDatasetUri"),
        ({"encryptionSpec": {"kmsKeyName": "key"}}, "encryption_spec.kms_key_name", "cryptoKeys"),
    ],
)  # fmt: skip
def test_each_fault_says_what_would_be_right(control: Control, body: dict[str, object], field: str, words: str) -> None:
    whole = {key: value for key, value in job_body(**body).items() if value is not None}
    assert words in refusals(control, whole)[field]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"\n\n", "only blank lines"),
        (ROWS + 3 * b"[]\n", "3 of 23 rows cannot be used (13 %; at most 10 % may be dropped). The first: "),
        (ROWS + 3 * b'{"contents": [\n', "The first: line 21: "),
        (ROWS.replace(b'"model"', b'"robot"', 3), "3 of 20 rows cannot be used"),
        (b"[]\n" * 500, "bad.jsonl: none of the first 100 rows can be used. The first: line 1: "),
        (b"[]\n", "bad.jsonl: the only row cannot be used. The first: line 1: "),
        (b"[]\n[]\n", "bad.jsonl: none of 2 rows can be used."),
    ],
)  # fmt: skip
def test_a_broken_dataset_is_refused_with_its_line(control: Control, content: bytes, words: str) -> None:
    control.buckets.put_bytes("data", "bad.jsonl", content)
    assert words in refusals(control, job_body("bad"))["supervised_tuning_spec.training_dataset_uri"]


@pytest.mark.parametrize("line", [0, 4, 19])
@pytest.mark.parametrize("count", [20, 119])
def test_a_bad_row_is_one_of_the_tenth_that_may_be_dropped_wherever_it_is(
    control: Control, line: int, count: int
) -> None:
    rows = ROWS.splitlines(keepends=True) * 6
    rows = [*rows[:line], b'{"contents": []}\n', *rows[line:count]]
    control.buckets.put_bytes("data", "one-bad.jsonl", b"".join(rows))
    create(control, "one-bad", spec={"validationDatasetUri": "gs://data/one-bad.jsonl"})


def test_bad_rows_at_the_start_of_a_long_file_are_left_to_the_run_that_reads_it_all(control: Control) -> None:
    control.buckets.put_bytes("data", "head.jsonl", b"[]\n" * 99 + ROWS * 60)
    create(control, "head")


EXTREMES = [
    1e300, -1e300, 5e-324, 0, -0.0, -1, "NaN", "Infinity", "-Infinity", 2**63 - 1, 2**63, 2**70, 10**400, "1e999",
    str(2**63), str(10**400), "", True, [], {}, "ten",
]  # fmt: skip


@pytest.mark.parametrize("value", EXTREMES, ids=lambda value: repr(value)[:20])
@pytest.mark.parametrize("model", ["gemini-2.0-flash-001", OPEN])
@pytest.mark.parametrize("name", ["epochCount", "learningRateMultiplier", "learningRate", "batchSize", "adapterSize"])
def test_a_hyper_parameter_out_of_all_bounds_is_refused_by_name(
    control: Control, name: str, model: str, value: object
) -> None:
    body = job_body(baseModel=model, spec={"hyperParameters": {name: value}}, outputUri="gs://data/out")
    if name == "adapterSize" and value in (0, -0.0):
        return  # unspecified
    with pytest.raises(InvalidArgument) as refusal:
        tuning_jobs.create(control, member(control), PARENT, TuningJob.read(body, "tuning_job"))
    assert any("hyper_parameters." in each.field for each in refusal.value.violations)


def test_a_dataset_must_be_jsonl_and_within_the_size_limit(control: Control) -> None:
    control.buckets.put_bytes("data", "rows.csv", ROWS)
    assert ".jsonl" in refusals(control, job_body("gs://data/rows.csv"))["supervised_tuning_spec.training_dataset_uri"]


def test_a_dataset_of_another_project_does_not_exist(control: Control) -> None:
    add_project(control, "other")
    found = refusals(control, job_body("gs://data-other/train.jsonl"))
    assert "data-other" in found["supervised_tuning_spec.training_dataset_uri"]


@pytest.mark.parametrize("body", [{"veoTuningSpec": {}, "supervisedTuningSpec": None}])
def test_what_is_not_built_is_refused_by_name(control: Control, body: dict[str, object]) -> None:
    whole = {key: value for key, value in job_body(**body).items() if value is not None}
    with pytest.raises(Unimplemented, match="not supported yet"):
        tuning_jobs.create(control, member(control), PARENT, TuningJob.read(whole))


def test_missing_weights_are_refused_with_the_command_that_gets_them(control: Control) -> None:
    (control.catalog.models_folder / "smollm2-135m-instruct" / "sarto.digest").unlink()
    with pytest.raises(FailedPrecondition, match="sarto models pull smollm2-135m-instruct"):
        create(control)


def test_a_repeated_request_id_answers_the_first_job(any_control: Control) -> None:
    request, caller = str(uuid4()), member(any_control)
    job = TuningJob.read(job_body())
    first = tuning_jobs.create(any_control, caller, PARENT, job, request)
    assert tuning_jobs.create(any_control, caller, PARENT, job, request) == first
    with pytest.raises(AlreadyExists):
        tuning_jobs.create(any_control, caller, PARENT, TuningJob.read(job_body(description="other")), request)
    with pytest.raises(InvalidArgument, match="UUID"):
        tuning_jobs.create(any_control, caller, PARENT, job, "mine")
    assert len(tuning_jobs.list_jobs(any_control, caller, PARENT)[0]) == 1


def test_pages_are_newest_first_and_stable_under_inserts(any_control: Control) -> None:
    caller = member(any_control)
    names = [str(create(any_control)) for _ in range(5)]
    create(any_control, location="europe-west4")
    first, token = tuning_jobs.list_jobs(any_control, caller, PARENT, 2)
    create(any_control)
    second, token = tuning_jobs.list_jobs(any_control, caller, PARENT, 2, token)
    third, end = tuning_jobs.list_jobs(any_control, caller, PARENT, 2, token)
    assert [job["name"] for job in first + second + third] == names[::-1]
    assert end == ""
    assert len(tuning_jobs.list_jobs(any_control, caller, LocationName("demo", "-"))[0]) == 7


def test_a_page_token_of_another_list_is_refused(control: Control) -> None:
    for _ in range(3):
        create(control)
    _, token = tuning_jobs.list_jobs(control, member(control), PARENT, 1)
    for wrong, filter_ in ((token[:-1] + "!", ""), (token, "state=JOB_STATE_PENDING"), ("AAAA", "")):
        with pytest.raises(InvalidArgument, match="page_token"):
            tuning_jobs.list_jobs(control, member(control), PARENT, 1, wrong, filter_)
    with pytest.raises(InvalidArgument, match="page_size"):
        tuning_jobs.list_jobs(control, member(control), PARENT, -1)


@pytest.mark.parametrize(
    ("filter_", "count"),
    [
        ('state="JOB_STATE_PENDING"', 3),
        ("state!=JOB_STATE_PENDING", 0),
        ("labels.team=search", 2),
        ("labels.team:*", 2),
        ("labels:team", 2),
        ("NOT labels.team=search", 1),
        ("labels.team!=search AND labels.sarto-base:*", 1),
        ('tunedModelDisplayName="tickets*"', 2),
        ("tuned_model_display_name:MAIL", 1),
        ("base_model=gemini-2.5-flash OR base_model=gemini-2.0-flash-001", 3),
        ("(labels.n=1 OR labels.n=2) AND tunedModelDisplayName=tickets-1", 1),
        ("createTime>2020-01-01T00:00:00Z AND createTime<=2999-01-01T00:00:00Z", 3),
        ('createTime<"2020-01-01T00:00:00+01:00"', 0),
    ],
)
def test_lists_can_be_filtered(any_control: Control, filter_: str, count: int) -> None:
    create(any_control, tunedModelDisplayName="tickets-1", labels={"team": "search", "n": "1"})
    create(any_control, tunedModelDisplayName="tickets-2", labels={"team": "search", "n": "2"})
    create(any_control, tunedModelDisplayName="e-mails", baseModel="gemini-2.5-flash")
    assert len(tuning_jobs.list_jobs(any_control, member(any_control), PARENT, filter=filter_)[0]) == count


@pytest.mark.parametrize(
    "filter_", ["state=RUNNING", "colour=red", "createTime=now", "state>JOB_STATE_PENDING", "f(x)"]
)
def test_a_filter_of_the_wrong_kind_is_refused(control: Control, filter_: str) -> None:
    with pytest.raises(InvalidArgument, match="At character 1"):
        tuning_jobs.list_jobs(control, member(control), PARENT, filter=filter_)


def test_create_time_equals_itself(any_control: Control) -> None:
    moment = read(any_control, create(any_control))["createTime"]
    assert len(tuning_jobs.list_jobs(any_control, member(any_control), PARENT, filter=f'createTime="{moment}"')[0]) == 1


def test_a_pending_job_is_cancelled_at_once_and_an_ended_one_stays(any_control: Control) -> None:
    name = create(any_control)
    for _ in range(2):
        tuning_jobs.cancel(any_control, member(any_control), name)
        job = read(any_control, name)
        assert job["state"] == "JOB_STATE_CANCELLED"
        assert job["error"]["code"] == 1
        assert job["endTime"] == job["updateTime"]
    told, _ = events.list_events(any_control, member(any_control), name)
    assert [event["kind"] for event in told] == ["created", "cancelled"]


def test_only_an_ended_job_can_be_deleted(any_control: Control) -> None:
    name = create(any_control)
    with pytest.raises(FailedPrecondition, match="cancel it"):
        tuning_jobs.delete(any_control, member(any_control), name)
    tuning_jobs.cancel(any_control, member(any_control), name)
    tuning_jobs.delete(any_control, member(any_control), name)
    with pytest.raises(NotFound):
        read(any_control, name)


def test_a_job_is_found_in_its_own_region_only(control: Control) -> None:
    name = create(control)
    with pytest.raises(NotFound, match="it is in us-central1, not in europe-west4"):
        read(control, ResourceName(name.project, "europe-west4", "tuningJobs", name.id))


def test_another_project_sees_nothing(control: Control) -> None:
    name, stranger = create(control), add_project(control, "other")
    for call in (tuning_jobs.get, tuning_jobs.cancel, tuning_jobs.delete):
        with pytest.raises(PermissionDenied, match="or it may not exist"):
            call(control, stranger, name)
    assert tuning_jobs.list_jobs(control, stranger, LocationName("other", "-"))[0] == []
