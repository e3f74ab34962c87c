"""The documentation's snippet over gRPC, as a program of its own: `grpc_flow.py ADDRESS DATASET`.

Only `api_endpoint` is added to what the documentation writes. Prints what it saw as JSON.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from typing import Any

warnings.simplefilter("ignore")  # the SDK announces its own removal

import vertexai  # noqa: E402
from google.api_core import exceptions  # noqa: E402
from vertexai.generative_models import GenerativeModel  # noqa: E402
from vertexai.preview.tuning._tuning import rebase_tuned_model  # noqa: E402
from vertexai.tuning import sft  # noqa: E402

MODEL = "gemini-2.0-flash-001"
OPEN = "qwen/qwen3@qwen3-0.6b"
OUTPUT = "gs://grpc-data/full"
SECONDS = 60


def main(address: str, dataset: str) -> dict[str, Any]:
    vertexai.init(project="demo", location="us-central1", api_endpoint=address)
    job = awaited(sft.train(source_model=MODEL, train_dataset=dataset, epochs=1, tuned_model_display_name="over grpc"))
    seen: dict[str, Any] = {
        "succeeded": job.has_succeeded,
        "state": job.state.name,
        "model": job.tuned_model_name,
        "endpoint": job.tuned_model_endpoint_name,
        "experiment": job.experiment.name,
        "columns": list(job.experiment.get_data_frame().columns),
        "listed": [one.resource_name for one in sft.SupervisedTuningJob.list()],
        "name": job.resource_name,
    }
    full = sft.train(source_model=OPEN, train_dataset=dataset, epochs=1, tuning_mode="FULL", output_uri=OUTPUT)
    seen["full"] = [full.resource_name, awaited(full).state.name]
    model = GenerativeModel(job.tuned_model_endpoint_name)
    config = {"max_output_tokens": 6, "temperature": 0}
    answer = model.generate_content("q1", generation_config=config)
    pieces = list(model.generate_content("q1", generation_config=config, stream=True))
    seen |= {
        "text": "".join(part.text for part in answer.candidates[0].content.parts),
        "streamed": "".join(part.text for piece in pieces for c in piece.candidates for part in c.content.parts),
        "prompt_tokens": answer.usage_metadata.prompt_token_count,
        "counted": model.count_tokens("q1").total_tokens,
        "computed": len(model.compute_tokens("q1").tokens_info[0].token_ids),
    }
    rebased = sft.SupervisedTuningJob(rebase_tuned_model(job.tuned_model_name).resource_name)
    rebased.cancel()
    seen["cancelled"] = awaited(rebased).state.name
    seen["errors"] = {
        "adapter": caught(lambda: sft.train(source_model=MODEL, train_dataset=dataset, adapter_size=16)),
        "model": caught(lambda: sft.train(source_model="gemini-9", train_dataset=dataset)),
        "job": caught(lambda: sft.SupervisedTuningJob("projects/demo/locations/us-central1/tuningJobs/12345")),
        "stream": caught(lambda: list(GenerativeModel("gemini-9").generate_content("q", stream=True))),
        "project": caught(lambda: sft.SupervisedTuningJob("projects/other/locations/us-central1/tuningJobs/12345")),
    }
    return seen


def awaited(job: Any) -> Any:
    deadline = time.monotonic() + SECONDS
    while not job.has_ended:
        assert time.monotonic() < deadline, job.state
        time.sleep(0.2)
        job.refresh()
    return job


def caught(call: Any) -> list[str]:
    """Class and message of the SDK's own exception."""
    try:
        call()
    except exceptions.GoogleAPICallError as error:
        return [type(error).__name__, error.message]
    return ["nothing", ""]


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
