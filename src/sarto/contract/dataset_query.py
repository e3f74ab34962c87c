"""A query about a dataset, which needs the tokenizer of a base."""

from __future__ import annotations

from pydantic import Field

from sarto.contract.common import DataFormat, DatasetRef, Files, Record, TuningParameters
from sarto.contract.places import FileName
from sarto.contract.tuning_run import PastRun


class DatasetQuery(Record):
    """A query to the data stage outside a run: the report on a dataset, or the proof of one of its rows."""

    training: DatasetRef
    validation: DatasetRef | None = None
    data_format: DataFormat = "auto"
    parameters: TuningParameters
    max_tokens_per_example: int
    max_training_examples: int
    max_validation_examples: int
    cache_folder: FileName
    threads: int
    """Threads of a run, for the forecast."""
    past_runs: list[PastRun] = Field(default_factory=list)
    """Runs of the same project, newest first."""
    refusal: str = ""
    """The reason for which create would refuse a job on this data; empty if it would not."""
    row: int = 1
    """1-based line of the row to show."""

    def files(self) -> Files:
        datasets = [self.training, *([self.validation] if self.validation else [])]
        return Files(read=[each.path for each in datasets], write=[], scratch=[self.cache_folder])
