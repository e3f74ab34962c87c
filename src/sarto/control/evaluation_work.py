"""What evaluateDataset does: the spec of the engine's program, answers to its questions, its files into a bucket."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from sarto.control import evaluations, judge_endpoints, question_desk
from sarto.control.context import Control
from sarto.control.resolution import Deployed
from sarto.errors import from_status
from sarto.failpoints import around
from sarto.schema.runs import EvaluationResult, EvaluationSpec

RESPONSE = "type.googleapis.com/google.cloud.aiplatform.v1.EvaluateDatasetResponse"
Answer = Callable[[Deployed, dict[str, Any]], dict[str, Any]]
"""One generateContent request of JSON to its response; raises SartoError."""


class EvaluationWork:
    kind = "evaluation"

    def __init__(self, control: Control, answer: Answer) -> None:
        self._control, self._answer = control, answer

    def spec(self, project: str, run: dict[str, Any], folder: Path) -> EvaluationSpec:
        rows = folder / "rows.jsonl"
        found = self._control.buckets.resolve(run["dataset"], "dataset.gcs_source.uris[0]", project)
        if found.fields.kms_key and run.get("kmsKey"):
            with self._control.buckets.open(found) as source, rows.open("wb") as target:
                shutil.copyfileobj(source, target)
        else:
            with around("link"):
                self._control.buckets.link_into(found, rows)
        return EvaluationSpec(
            title=f"Evaluation of {run['dataset'].rpartition('/')[2]}",
            folder=str(folder),
            rows=str(rows),
            dataset_uri=run["dataset"],
            output_uri=run["output"],
            models=run["models"],
            config=run["config"],
            max_rows=self._control.limits.max_validation_examples,
        )

    def serving(self, run: dict[str, Any], folder: Path) -> AbstractContextManager[None]:
        def ask(name: str, request: dict[str, Any], pause: Callable[[float], object]) -> dict[str, Any]:
            if name in run["targets"]:
                return self._answer(Deployed(**run["targets"][name]), request)
            return judge_endpoints.ask_one(self._control.judges, name, request, pause)

        return question_desk.answering(folder, [*run["targets"], *run["outside"]], ask)

    def publish(
        self, project: str, run: dict[str, Any], folder: Path, result: bytes
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """The response is the last model's; those of all are in the metadata. Raises the evaluation's own error."""
        found = EvaluationResult.model_validate_json(result)
        if found.error is not None:
            raise from_status(found.error)
        evaluations.upload(self._control, project, folder / "out", run["output"], run.get("kmsKey", ""))
        last: dict[str, Any] = next(reversed(found.runs.values()), {})
        if last.get("error") and "evaluateDatasetResponse" not in last:
            raise from_status(last["error"])
        response = last.get("evaluateDatasetResponse", {}) | {"outputInfo": {"gcsOutputDirectory": run["output"]}}
        facts = {"rows": found.rows, "rowsLeftOut": found.left_out, "modelResults": found.runs}
        return {"@type": RESPONSE, **response}, facts
