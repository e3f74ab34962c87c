"""The unmodified `vertexai` SDK over REST, through the flow of the tuning documentation."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from .conftest import PARENT, Dataset
from .service import Service

pytestmark = pytest.mark.filterwarnings(
    "ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning"
)


@pytest.fixture(scope="module")
def sdk(service: Service) -> Iterator[SimpleNamespace]:
    """`vertexai` as the documentation imports it, pointed at our server with the key file as credentials."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it announces its own removal
        import vertexai
        from google.api_core import exceptions
        from google.cloud import aiplatform
        from vertexai.generative_models import GenerativeModel
        from vertexai.preview.tuning._tuning import rebase_tuned_model
        from vertexai.tuning import sft
    vertexai.init(
        project="demo",
        location="us-central1",
        api_endpoint=service.address,
        api_transport="rest",
        credentials=service.credentials(),
    )
    yield SimpleNamespace(
        sft=sft,
        aiplatform=aiplatform,
        exceptions=exceptions,
        GenerativeModel=GenerativeModel,
        rebase_tuned_model=rebase_tuned_model,
    )


@pytest.fixture(scope="module")
def job(sdk: SimpleNamespace, dataset: Dataset) -> Any:
    """A job made and awaited the documented way."""
    made = sdk.sft.train(
        source_model="gemini-2.0-flash-001",
        train_dataset=dataset.training,
        validation_dataset=dataset.validation,
        epochs=2,
        adapter_size=4,
        learning_rate_multiplier=1.0,
        tuned_model_display_name="documented",
        labels={"flow": "vertexai"},
    )
    deadline = time.monotonic() + 60
    while not made.has_ended:
        assert time.monotonic() < deadline
        time.sleep(0.2)
        made.refresh()
    return made


def test_train_poll_and_read_the_outcome(job: Any, http: httpx.Client) -> None:
    assert job.has_succeeded and not job.error.code
    assert job.tuned_model_name.endswith("@1") and "/models/" in job.tuned_model_name
    assert "/endpoints/" in job.tuned_model_endpoint_name
    assert job.state.name == "JOB_STATE_SUCCEEDED"
    raw = http.get(f"/v1/{job.resource_name}").json()
    assert raw["supervisedTuningSpec"]["hyperParameters"] == {
        "epochCount": "2", "adapterSize": "ADAPTER_SIZE_FOUR", "learningRateMultiplier": 1.0,
    }  # fmt: skip


def test_create_answers_no_experiment_and_refresh_reads_it_later(job: Any) -> None:
    assert job.experiment is not None
    assert job.experiment.name.startswith("tuning-experiment-")


def test_experiment_data_frame_shows_the_metrics(job: Any) -> None:
    frame = job.experiment.get_data_frame()
    assert len(frame) == 1
    assert "metric.train_total_loss" in frame.columns, list(frame.columns)
    assert frame["metric.train_total_loss"][0] > 0
    assert frame["state"][0] == "COMPLETE"


def test_tensorboards_of_the_project_and_what_they_hold(sdk: SimpleNamespace, job: Any) -> None:
    (board,) = sdk.aiplatform.Tensorboard.list(filter="is_default=true")
    assert sdk.aiplatform.Tensorboard.list(filter="is_default=false") == []
    experiments = sdk.aiplatform.TensorboardExperiment.list(tensorboard_name=board.resource_name)
    (mine,) = [one for one in experiments if one.display_name == job.experiment.name]
    (run,) = sdk.aiplatform.TensorboardRun.list(tensorboard_experiment_name=mine.resource_name)
    assert run.read_time_series_data()["/train_total_loss"].values
    (artifact,) = sdk.aiplatform.Artifact.list(filter=f'in_context("{job.experiment.resource_name}")')
    assert artifact.metadata["resourceName"] == run.resource_name


def test_an_experiment_of_ones_own_is_refused_by_name(sdk: SimpleNamespace, service: Service) -> None:
    with pytest.raises(sdk.exceptions.BadRequest, match=r"MetadataService.CreateContext is not implemented.*leave"):
        sdk.aiplatform.init(experiment="mine", experiment_tensorboard=False)


def test_list_and_get_by_name(sdk: SimpleNamespace, job: Any) -> None:
    listed = sdk.sft.SupervisedTuningJob.list()
    assert job.resource_name in [one.resource_name for one in listed]
    chosen = sdk.sft.SupervisedTuningJob.list(filter='labels.flow="vertexai"')
    assert [one.resource_name for one in chosen] == [job.resource_name]
    again = sdk.sft.SupervisedTuningJob(job.resource_name)
    assert again.has_succeeded and again.tuned_model_name == job.tuned_model_name


def test_cancel(sdk: SimpleNamespace, dataset: Dataset) -> None:
    made = sdk.sft.train(source_model="gemini-2.0-flash-001", train_dataset=dataset.training, epochs=200)
    made.cancel()
    deadline = time.monotonic() + 20
    while not made.has_ended:
        assert time.monotonic() < deadline
        time.sleep(0.1)
        made.refresh()
    assert made.state.name == "JOB_STATE_CANCELLED" and not made.has_succeeded
    assert made.error.code == 1
    made.cancel()
    made.refresh()
    assert made.state.name == "JOB_STATE_CANCELLED"


def test_generate_stream_and_count_on_the_tuned_endpoint(sdk: SimpleNamespace, job: Any) -> None:
    model = sdk.GenerativeModel(job.tuned_model_endpoint_name)
    config = {"max_output_tokens": 6, "temperature": 0}
    answer = model.generate_content("q1", generation_config=config)
    assert answer.candidates[0].finish_reason.name in ("STOP", "MAX_TOKENS")
    assert answer.usage_metadata.prompt_token_count > 0
    pieces = list(model.generate_content("q1", generation_config=config, stream=True))
    streamed = "".join(part.text for piece in pieces for c in piece.candidates for part in c.content.parts)
    assert streamed == "".join(part.text for part in answer.candidates[0].content.parts)
    assert model.count_tokens("q1").total_tokens == answer.usage_metadata.prompt_token_count
    assert model.compute_tokens("q1").tokens_info[0].token_ids


def test_model_registry(sdk: SimpleNamespace, job: Any) -> None:
    model = sdk.aiplatform.Model(job.tuned_model_name)
    assert model.display_name == "documented" and model.version_id == "1"
    assert model.labels["google-vertex-llm-tuning-base-model-id"] == "gemini-2.0-flash-001"
    assert "tune-type" in model.labels and model.labels["flow"] == "vertexai"
    assert [version.version_id for version in model.versioning_registry.list_versions()] == ["1"]
    model.update(description="renamed")
    assert sdk.aiplatform.Model(job.tuned_model_name).description == "renamed"
    assert job.tuned_model_name.partition("@")[0] in [one.resource_name for one in sdk.aiplatform.Model.list()]
    assert job.tuned_model_endpoint_name in [one.resource_name for one in sdk.aiplatform.Endpoint.list()]


def test_an_endpoint_is_made_renamed_and_deployed_on(sdk: SimpleNamespace, job: Any) -> None:
    endpoint = sdk.aiplatform.Endpoint.create(display_name="stable", labels={"flow": "own"})
    client = endpoint.api_client
    deployed = {"model": job.tuned_model_name, "checkpoint_id": "1"}
    done = client.deploy_model(endpoint=endpoint.resource_name, deployed_model=deployed, traffic_split={"0": 100})
    assert done.result().deployed_model.checkpoint_id == "1"
    assert sdk.GenerativeModel(endpoint.resource_name).generate_content("q1").candidates
    endpoint.update(display_name="renamed")
    assert sdk.aiplatform.Endpoint(endpoint.resource_name).display_name == "renamed"
    with pytest.raises(sdk.exceptions.BadRequest, match="dedicated_resources"):
        client.deploy_model(
            endpoint=endpoint.resource_name,
            deployed_model={"model": job.tuned_model_name, "dedicated_resources": {"min_replica_count": 1}},
        )
    endpoint.undeploy_all()
    endpoint.delete()


def test_rebase_and_deletion_wait_for_operations(sdk: SimpleNamespace, job: Any) -> None:
    rebased = sdk.rebase_tuned_model(job.tuned_model_name)
    assert rebased.resource_name != job.resource_name
    sdk.sft.SupervisedTuningJob(rebased.resource_name).cancel()
    model = sdk.aiplatform.Model(job.tuned_model_name.partition("@")[0])
    model.delete()
    with pytest.raises(sdk.exceptions.NotFound):
        sdk.aiplatform.Model(job.tuned_model_name)


def test_errors_are_the_official_ones(sdk: SimpleNamespace, dataset: Dataset) -> None:
    exceptions = sdk.exceptions
    with pytest.raises(exceptions.BadRequest, match="adapter"):
        sdk.sft.train(source_model="gemini-2.0-flash-001", train_dataset=dataset.training, adapter_size=16)
    with pytest.raises(exceptions.BadRequest, match="not known"):
        sdk.sft.train(source_model="gemini-9", train_dataset=dataset.training)
    with pytest.raises(exceptions.NotFound):
        sdk.sft.SupervisedTuningJob(f"{PARENT}/tuningJobs/1234567890123456789")


def test_a_self_signed_token_is_what_the_sdk_sends(sdk: SimpleNamespace, service: Service) -> None:
    from google.auth.transport.requests import AuthorizedSession

    credentials = service.credentials().with_always_use_jwt_access(True)
    session = AuthorizedSession(credentials, default_host="aiplatform.googleapis.com")
    answer = session.get(f"{service.address}/v1/{PARENT}/tuningJobs")
    assert answer.status_code == 200, answer.text
