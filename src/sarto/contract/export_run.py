"""Input (`spec.json`), progress and output (`result.json`) of an export."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from sarto.contract.common import BaseWeights, DataFormat, Files, Instructions, ParityCertificate, Record
from sarto.contract.places import FileName

ExportFormat = Literal["adapter", "merged-safetensors", "gguf-f16", "gguf-q8-0"]


class ExportSpec(Record):
    """Input of an export, which writes `files/` and, last, `result.json` into its folder."""

    model: str
    title: str = ""
    format: ExportFormat
    base: BaseWeights
    adapter_folder: FileName
    """Empty for a fully tuned model, which is the base."""
    folder: FileName
    held_out: FileName
    """File of a few dataset rows on which the export is compared with the served model."""
    held_out_uri: str
    data_format: DataFormat = "auto"
    license: str = ""
    card: dict[str, Any] = Field(default_factory=dict)
    """Facts for the model card: lineage, data, hyperparameters, metrics."""
    threads: int
    instructions: Instructions = Instructions()

    def files(self) -> Files:
        return Files(
            read=[path for path in (self.base.folder, self.adapter_folder, self.held_out) if path], write=[self.folder]
        )


class ExportProgress(Record):
    percent: int
    message: str


class ExportResult(Record):
    """With `error` (a google.rpc.Status) nothing is published."""

    error: dict[str, Any] | None = None
    files: list[str] = Field(default_factory=list)
    comparison: ParityCertificate | None = None


FORMATS = ("adapter", "merged-safetensors", "gguf-f16", "gguf-q8-0")
WHOLE_FORMATS = tuple(name for name in FORMATS if name != "adapter")
"""The formats of a fully tuned model."""
