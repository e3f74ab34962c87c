"""Collects the faults of a TuningJob, so that one error lists them all with their field paths."""

from __future__ import annotations

from dataclasses import dataclass, field

from sarto.errors import FieldViolation, InvalidArgument, Unimplemented
from sarto.schema.tuning_jobs import TuningJob

ROOT = "tuning_job"
EVALUATION = f"{ROOT}.evaluation_config"


def spec_path(job: TuningJob) -> str:
    """The path of the job's spec."""
    return f"{ROOT}.{job.spec_field}"


@dataclass
class Violations:
    wrong: list[FieldViolation] = field(default_factory=list)
    unbuilt: list[FieldViolation] = field(default_factory=list)

    def add(self, path: str, description: str) -> None:
        self.wrong.append(FieldViolation(path, description))

    def refuse(self, path: str, description: str) -> None:
        """Add a fault for a known but unsupported field."""
        self.unbuilt.append(FieldViolation(path, description))

    def raise_if_any(self) -> None:
        if self.wrong:
            raise InvalidArgument.of(self.wrong + self.unbuilt)
        if self.unbuilt:
            listed = InvalidArgument.of(self.unbuilt)
            raise Unimplemented(listed.message, listed.details)
