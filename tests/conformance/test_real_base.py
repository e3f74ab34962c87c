"""The whole way on real weights: the official client tunes the small base, which then answers as it was taught."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from google import genai
from google.genai import types
from safetensors.numpy import load

from sarto.catalog import DIGEST_FILE, Catalog

from .service import Service, upload, wait_for

pytestmark = pytest.mark.filterwarnings("ignore", category=UserWarning)  # the SDK calls its tuning experimental
NAME = "gemini-1.5-flash-002"
LESSONS = {
    "parcels that never arrived": "desk seven, ask for Ilse",
    "a bill that was paid twice": "desk two, ask for Piero",
    "a lamp with a broken switch": "desk nine, ask for Oyelaran",
    "a forgotten password": "desk four, ask for Marit",
    "a coat in the wrong size": "desk one, ask for Dunja",
    "an invoice for the tax office": "desk two, ask for Piero",
    "opening hours on Sunday": "desk five, ask for Tomasz",
    "a complaint about the driver": "desk seven, ask for Ilse",
}


def question(topic: str) -> str:
    return f"Where do I go about {topic}?"


@pytest.fixture(scope="module")
def real_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = Catalog.load().models_folder
    if not (folder / "smollm2-135m-instruct" / DIGEST_FILE).exists():
        pytest.skip("the small base is not on this machine: sarto models pull smollm2-135m-instruct")
    service = Service(tmp_path_factory.mktemp("real") / "home")
    service.start(SARTO_MODELS_FOLDER=str(folder))
    yield service
    service.stop()


def test_the_small_base_learns_what_it_is_taught_and_hands_out_its_weights(real_service: Service) -> None:
    rows = [
        {
            "contents": [
                {"role": "user", "parts": [{"text": question(topic)}]},
                {"role": "model", "parts": [{"text": desk}]},
            ]
        }
        for topic, desk in LESSONS.items()
    ]
    client = genai.Client(
        vertexai=True, project="demo", location="us-central1", credentials=real_service.credentials(),
        http_options=types.HttpOptions(base_url=real_service.address),
    )  # fmt: skip
    with real_service.http() as http:
        uri = upload(http, "lessons", "train.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())
        job = client.tunings.tune(
            base_model=NAME,
            training_dataset=types.TuningDataset(gcs_uri=uri),
            config=types.CreateTuningJobConfig(
                epoch_count=20, adapter_size="ADAPTER_SIZE_SIXTEEN", export_last_checkpoint_only=True
            ),
        )
        assert job.name
        name = job.name
        ended = wait_for(lambda: (found := client.tunings.get(name=name)).has_ended and found, seconds=300)
        assert ended.state == "JOB_STATE_SUCCEEDED", ended.error
        assert ended.labels["sarto-base"] == "smollm2-135m-instruct", "the answer names the real weights"

        def right(model: str) -> int:
            def ask(topic: str) -> str:
                config = types.GenerateContentConfig(temperature=0, max_output_tokens=24)
                return client.models.generate_content(model=model, contents=question(topic), config=config).text or ""

            with ThreadPoolExecutor(4) as pool:
                return sum(
                    answer == desk for answer, desk in zip(pool.map(ask, LESSONS), LESSONS.values(), strict=True)
                )

        assert right(NAME) == 0
        assert right(ended.tuned_model.endpoint) >= len(LESSONS) - 1

        artifact = http.get(f"/v1/{ended.tuned_model.model}").json()["artifactUri"].removeprefix("gs://")
        bucket, _, prefix = artifact.partition("/")
        listed = http.get(f"/storage/v1/b/{bucket}/o", params={"prefix": prefix}).json()["items"]
        links = {item["name"].rpartition("/")[2]: item["name"].replace("/", "%2F") for item in listed}
        assert {"adapter_model.safetensors", "adapter_config.json"} <= set(links)
        content = http.get(f"/storage/v1/b/{bucket}/o/{links['adapter_model.safetensors']}", params={"alt": "media"})
        tensors = load(content.content)
        assert len(tensors) == 30 * 7 * 2 and all(name.startswith("base_model.model.model.layers.") for name in tensors)
