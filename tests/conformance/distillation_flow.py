"""Distillation through google-genai, as a program of its own: `distillation_flow.py BASE PROMPTS EXAMPLES TEACHER`.

Run by every version of the SDK we hold; signs in by GOOGLE_APPLICATION_CREDENTIALS. Prints what it saw as JSON.
"""

from __future__ import annotations

import json
import sys
import warnings
from typing import Any

from google import genai
from google.genai import types
from preference_flow import BASE_MODEL, awaited, caught, dumped


def main(base_url: str, prompts: str, examples: str, teacher: str) -> dict[str, Any]:
    with genai.Client(
        vertexai=True, project="demo", location="us-central1", http_options=types.HttpOptions(base_url=base_url)
    ) as client:

        def tune(dataset: str, base_model: str = BASE_MODEL, **settings: Any) -> Any:
            config = types.CreateTuningJobConfig(**settings)
            data = types.TuningDataset(gcs_uri=dataset)
            return client.tunings.tune(base_model=base_model, training_dataset=data, config=config)

        def distil(**settings: Any) -> Any:
            return tune(prompts, method="DISTILLATION", **settings)

        first = distil(
            epoch_count=3,
            adapter_size=types.AdapterSize.ADAPTER_SIZE_EIGHT,
            learning_rate_multiplier=2.0,
            tuned_teacher_model_source=teacher,
            sft_loss_weight_multiplier=0.5,
            export_last_checkpoint_only=True,
            tuned_model_display_name="flow of a teacher",
            validation_dataset=types.TuningValidationDataset(gcs_uri=examples),
        )
        job = awaited(client, first)
        config = types.GenerateContentConfig(temperature=0, max_output_tokens=6)
        again = awaited(client, tune(examples, job.tuned_model.model, epoch_count=1))
        return {
            "version": genai.__version__,
            "made": dumped(first),
            "job": dumped(job),
            "text": client.models.generate_content(model=job.tuned_model.endpoint, contents="q1", config=config).text,
            "again": dumped(again),
            "listed": [one.name for one in client.tunings.list(config={"page_size": 2})],
            "errors": [
                caught(distil),
                caught(lambda: distil(base_teacher_model=BASE_MODEL, tuned_teacher_model_source=teacher)),
                caught(lambda: distil(base_teacher_model="no-such-model")),
                caught(lambda: distil(base_teacher_model=teacher)),
                caught(lambda: tune(prompts, base_teacher_model=BASE_MODEL)),
                caught(lambda: distil(base_teacher_model="outside/teacher", sft_loss_weight_multiplier=1.0)),
                caught(lambda: distil(tuned_teacher_model_source=teacher, sft_loss_weight_multiplier=-1.0)),
            ],
        }


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    print(json.dumps(main(*sys.argv[1:])))
