"""The work of evaluateDataset: the spec of the engine's program, responses to its generation requests, its output
files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from sarto.contract.evaluation_run import EvaluationResult, EvaluationSpec
from sarto.contract.places import Places
from sarto.contract.run_folder import OUTPUT_FOLDER, ROWS_FILE, WORKSPACE, in_workspace
from sarto.control.access import run_identity
from sarto.control.context import Control
from sarto.control.evaluation.dataset_evaluations import EvaluationRun
from sarto.control.executors.executor import RunTransport
from sarto.control.jobs import dataset_check
from sarto.control.models.resolution import ResolvedModel
from sarto.control.runs import evaluations, external_judge, model_relay
from sarto.control.runs.operation_runner import OperationOutcome
from sarto.errors import from_status

RESPONSE = "type.googleapis.com/google.cloud.aiplatform.v1.EvaluateDatasetResponse"
Answer = Callable[[ResolvedModel, dict[str, Any]], dict[str, Any]]
"""One generateContent request of JSON to its response; raises SartoError."""


class EvaluationWork:
    kind = "evaluation"
    run_type = EvaluationRun

    def __init__(self, control: Control, answer: Answer) -> None:
        self._control, self._answer = control, answer

    def spec(self, project: str, run: EvaluationRun, folder: Path, places: Places) -> EvaluationSpec:
        run_identity.check_agent(self._control, project, [(run.dataset, run_identity.READ)])
        rows = folder / ROWS_FILE
        operation = folder.name.removeprefix(f"{self.kind}-")
        run_identity.note_read(self._control, project, run.dataset)
        dataset = self._control.buckets.held(project, operation, run.dataset, "dataset.gcs_source.uris[0]")
        dataset_check.pin(self._control, dataset, rows, is_private=bool(run.kms_key))
        return EvaluationSpec(
            title=f"Evaluation of {run.dataset.rpartition('/')[2]}",
            folder=WORKSPACE,
            rows=in_workspace(ROWS_FILE),
            dataset_uri=run.dataset,
            output_uri=run.output,
            models=run.models,
            config=run.config.to_json(),
            max_rows=self._control.limits.max_validation_examples,
        )

    def serving(self, run: EvaluationRun, program: RunTransport) -> AbstractContextManager[None]:
        def ask(name: str, request: dict[str, Any], pause: Callable[[float], object]) -> dict[str, Any]:
            if name in run.targets:
                return self._answer(run.targets[name], request)
            return external_judge.ask_one(self._control.judges, name, request, pause)

        return model_relay.answering(program, WORKSPACE, [*run.targets, *run.outside], ask)

    @contextmanager
    def publish(self, project: str, run: EvaluationRun, folder: Path, result: bytes) -> Iterator[OperationOutcome]:
        """Store the output. The response is the last model's result; those of all are in the metadata. Raises the
        evaluation's own error."""
        evaluation = EvaluationResult.model_validate_json(result)
        if evaluation.error is not None:
            raise from_status(evaluation.error)
        run_identity.check_agent(self._control, project, [(run.output, run_identity.WRITE)])
        last: dict[str, Any] = next(reversed(evaluation.runs.values()), {})
        if last.get("error") and "evaluateDatasetResponse" not in last:
            raise from_status(last["error"])
        response = last.get("evaluateDatasetResponse", {}) | {"outputInfo": {"gcsOutputDirectory": run.output}}
        facts = {"rows": evaluation.rows, "rowsLeftOut": evaluation.left_out, "modelResults": evaluation.runs}
        may_replace = run.may_replace and run_identity.may_replace(self._control, project, run.output, "")
        key = run.kms_key
        with evaluations.storing(self._control, project, folder / OUTPUT_FOLDER, run.output, key) as files:
            yield OperationOutcome(
                {"@type": RESPONSE, **response}, facts, lambda into: files.name_all(into, may_replace)
            )
