"""The tuning documentation's flow through google-genai, as a program of its own: `genai_flow.py BASE DATASET`.

Run by every version of the SDK we hold; signs in by GOOGLE_APPLICATION_CREDENTIALS. Prints what it saw as JSON.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

from google import genai
from google.genai import errors, types

BASE_MODEL = "gemini-2.5-flash"
ENDED = {"JOB_STATE_SUCCEEDED", "JOB_STATE_FAILED", "JOB_STATE_CANCELLED"}
OUTPUT = "gs://tuning-data/flow"
SECONDS = 60


def main(base_url: str, dataset: str) -> dict[str, Any]:
    with genai.Client(
        vertexai=True, project="demo", location="us-central1", http_options=types.HttpOptions(base_url=base_url)
    ) as client:
        data = types.TuningDataset(gcs_uri=dataset)
        config = types.CreateTuningJobConfig(
            epoch_count=2,
            adapter_size=types.AdapterSize.ADAPTER_SIZE_TWO,
            learning_rate_multiplier=1.5,
            tuned_model_display_name="flow",
            validation_dataset=types.TuningValidationDataset(gcs_uri=dataset),
            evaluation_config=types.EvaluationConfig(
                metrics=[
                    types.Metric(name="exact_match"),
                    types.Metric(name="rouge_l_sum"),
                    types.Metric(name="tone", prompt_template="Rate {response}"),
                ],
                output_config=types.OutputConfig(gcs_destination=types.GcsDestination(output_uri_prefix=OUTPUT)),
                autorater_config=types.AutoraterConfig(sampling_count=1),
                inference_generation_config=types.GenerationConfig(max_output_tokens=4),
            ),
            labels={"flow": f"genai-{genai.__version__.replace('.', '-')}"},
        )
        made = client.tunings.tune(base_model=BASE_MODEL, training_dataset=data, config=config)
        long = client.tunings.tune(
            base_model=BASE_MODEL, training_dataset=data, config=types.CreateTuningJobConfig(epoch_count=200)
        )
        client.tunings.cancel(name=long.name)
        job = awaited(client, made)
        return {
            "version": genai.__version__,
            "made": made.model_dump(mode="json", exclude_none=True, exclude={"sdk_http_response"}),
            "job": job.model_dump(mode="json", exclude_none=True, exclude={"sdk_http_response"}),
            "cancelled": awaited(client, long).state.name,
            "listed": [one.name for one in client.tunings.list(config={"page_size": 1})],
            **answers(client, job),
            "chats": [chat(client, job.tuned_model.endpoint), chat(client, BASE_MODEL, ends=True)],
            **models(client, job),
            "errors": [
                caught(lambda: client.tunings.get(name="projects/demo/locations/us-central1/tuningJobs/12345")),
                caught(
                    lambda: client.tunings.tune(
                        base_model=BASE_MODEL,
                        training_dataset=data,
                        config=types.CreateTuningJobConfig(adapter_size="ADAPTER_SIZE_THIRTY_TWO"),
                    )
                ),
            ],
        }


def answers(client: genai.Client, job: Any) -> dict[str, Any]:
    config = types.GenerateContentConfig(temperature=0, max_output_tokens=6, seed=1)
    model = job.tuned_model.endpoint
    whole = client.models.generate_content(model=model, contents="q1", config=config)
    pieces = list(client.models.generate_content_stream(model=model, contents="q1", config=config))
    return {
        "text": whole.text,
        "streamed": "".join(piece.text or "" for piece in pieces),
        "prompt_tokens": whole.usage_metadata.prompt_token_count,
        "counted": client.models.count_tokens(model=model, contents="q1").total_tokens,
        "computed": len(client.models.compute_tokens(model=model, contents="q1").tokens_info[0].token_ids),
    }


def chat(client: genai.Client, model: str, *, ends: bool = False) -> dict[str, Any]:
    """Two questions to a chat that takes whole answers, and to one that takes them in pieces. The first answer is cut
    by its length, or `ends` with a piece that has no text."""
    config = types.GenerateContentConfig(temperature=0, max_output_tokens=12, seed=1)
    if ends:
        plain = client.models.generate_content(model=model, contents="q0", config=config).text
        config.stop_sequences = [plain[4:6]]
    whole, pieces = (client.chats.create(model=model, config=config) for _ in range(2))
    answers = [whole.send_message(question) for question in ("q0", "q1")]
    streams = [list(pieces.send_message_stream(question)) for question in ("q0", "q1")]
    return {
        "texts": [answer.text for answer in answers],
        "streamed": ["".join(piece.text or "" for piece in stream) for stream in streams],
        "finish": [stream[-1].candidates[0].finish_reason.name for stream in streams],
        "last_parts": [stream[-1].candidates[0].content.parts is not None for stream in streams],
        "tokens": [answer.usage_metadata.prompt_token_count for answer in answers],
        "streamed_tokens": [stream[-1].usage_metadata.prompt_token_count for stream in streams],
        "history": [len(one.get_history(curated=True)) >= 4 for one in (whole, pieces)],
    }


def models(client: genai.Client, job: Any) -> dict[str, Any]:
    name = job.tuned_model.model
    registered = client.models.get(model=name)
    renamed = client.models.update(model=name, config={"display_name": "renamed", "default_checkpoint_id": "1"})
    return {
        "tuned": [one.name for one in client.models.list(config={"query_base": False})],
        "base": [one.name for one in client.models.list(config={"query_base": True})],
        "checkpoints": [one.checkpoint_id for one in registered.checkpoints],
        "renamed": [renamed.display_name, renamed.default_checkpoint_id],
    }


def awaited(client: genai.Client, job: Any) -> Any:
    deadline = time.monotonic() + SECONDS
    while job.state.name not in ENDED:
        assert time.monotonic() < deadline, job.state
        time.sleep(0.2)
        job = client.tunings.get(name=job.name)
    return job


def caught(call: Any) -> list[Any]:
    try:
        call()
    except errors.ClientError as error:
        return [error.code, error.status, error.message]
    return []


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
