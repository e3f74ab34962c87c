"""Preference tuning through google-genai, as a program of its own: `preference_flow.py BASE PAIRS EXAMPLES`.

Run by every version of the SDK we hold; signs in by GOOGLE_APPLICATION_CREDENTIALS. Prints what it saw as JSON.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from typing import Any

from google import genai
from google.genai import errors, types

BASE_MODEL = "gemini-2.5-flash"
ENDED = {"JOB_STATE_SUCCEEDED", "JOB_STATE_FAILED", "JOB_STATE_CANCELLED"}
SECONDS = 60


def main(base_url: str, pairs: str, examples: str) -> dict[str, Any]:
    with genai.Client(
        vertexai=True, project="demo", location="us-central1", http_options=types.HttpOptions(base_url=base_url)
    ) as client:

        def tune(dataset: str, base_model: str = BASE_MODEL, **settings: Any) -> Any:
            config = types.CreateTuningJobConfig(**settings)
            data = types.TuningDataset(gcs_uri=dataset)
            return client.tunings.tune(base_model=base_model, training_dataset=data, config=config)

        first = tune(
            pairs,
            method="preference_tuning",
            epoch_count=2,
            adapter_size=types.AdapterSize.ADAPTER_SIZE_TWO,
            learning_rate_multiplier=1.5,
            beta=0.2,
            batch_size=4,
            tuned_model_display_name="flow of pairs",
            validation_dataset=types.TuningValidationDataset(gcs_uri=pairs),
        )
        job = awaited(client, first)
        model = job.tuned_model.endpoint
        config = types.GenerateContentConfig(temperature=0, max_output_tokens=6)
        taught = awaited(client, tune(examples, epoch_count=1))
        then = awaited(client, tune(pairs, taught.tuned_model.model, method="PREFERENCE_TUNING", epoch_count=1))
        again = awaited(
            client, tune(pairs, then.tuned_model.model, method="PREFERENCE_TUNING", beta=0.5, epoch_count=1)
        )
        return {
            "version": genai.__version__,
            "made": dumped(first),
            "job": dumped(job),
            "text": client.models.generate_content(model=model, contents="q1", config=config).text,
            "chain": [dumped(one) for one in (taught, then, again)],
            "listed": [one.name for one in client.tunings.list(config={"page_size": 2})],
            "errors": [
                caught(lambda: tune(pairs, beta=0.2)),
                caught(lambda: tune(pairs, method="PREFERENCE_TUNING", samples_per_prompt=4)),
                caught(lambda: tune(pairs, method="DPO")),
                caught(lambda: tune(pairs, method="PREFERENCE_TUNING", beta=11)),
                caught(lambda: tune(examples, method="PREFERENCE_TUNING")),
                caught(lambda: tune(pairs)),
            ],
        }


def dumped(job: Any) -> dict[str, Any]:
    found: dict[str, Any] = job.model_dump(mode="json", exclude_none=True, exclude={"sdk_http_response"})
    return found


def caught(call: Any) -> list[Any]:
    try:
        call()
    except errors.APIError as error:
        return [error.code, error.status, error.message]
    return []


def awaited(client: genai.Client, job: Any) -> Any:
    deadline = time.monotonic() + SECONDS
    while job.state.name not in ENDED:
        if time.monotonic() > deadline:
            raise SystemExit(f"still {job.state}")
        time.sleep(0.2)
        job = client.tunings.get(name=job.name)
    if job.state.name != "JOB_STATE_SUCCEEDED":
        raise SystemExit(f"{job.state}: {job.error}")
    return job


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    print(json.dumps(main(*sys.argv[1:])))
