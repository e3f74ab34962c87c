"""Input (`spec.json`) and output (`result.json`) of the evaluation of a dataset."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from sarto.contract.common import Files, Record
from sarto.contract.places import FileName


class EvaluationSpec(Record):
    """Input of an evaluation outside a tuning job: `spec.json` in its folder, into which it writes `out/` and, last,
    `result.json`."""

    title: str
    folder: FileName
    rows: FileName
    """File of the rows to answer and score."""
    dataset_uri: str
    output_uri: str
    """Later location of `out/`."""
    models: list[str] = Field(default_factory=list)
    """Names of the models that answer the rows, for the relay; without any, the rows have answers."""
    config: dict[str, Any] = Field(default_factory=dict)
    """An EvaluationConfig in the API's form; with models it may have no metrics."""
    max_rows: int

    def files(self) -> Files:
        return Files(read=[self.rows], write=[self.folder])


class EvaluationResult(Record):
    """With `error` (a google.rpc.Status) nothing is published. `runs` are EvaluateDatasetRuns by model, with the empty
    name for answers from the rows."""

    error: dict[str, Any] | None = None
    rows: int = 0
    left_out: int = 0
    """Number of unreadable rows."""
    runs: dict[str, dict[str, Any]] = Field(default_factory=dict)
    has_report: bool = False
