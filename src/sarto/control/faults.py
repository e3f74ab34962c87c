"""The faults of a TuningJob, collected so that one answer names them all, and the paths they are named by."""

from __future__ import annotations

from dataclasses import dataclass, field

from sarto.errors import FieldViolation, InvalidArgument, Unimplemented

ROOT = "tuning_job"
SPEC = f"{ROOT}.supervised_tuning_spec"
EVALUATION = f"{ROOT}.evaluation_config"
PARAMETERS = f"{SPEC}.hyper_parameters"


@dataclass
class Faults:
    wrong: list[FieldViolation] = field(default_factory=list)
    unbuilt: list[FieldViolation] = field(default_factory=list)

    def add(self, path: str, description: str) -> None:
        self.wrong.append(FieldViolation(path, description))

    def refuse(self, path: str, description: str) -> None:
        """A field we know and cannot honour yet."""
        self.unbuilt.append(FieldViolation(path, description))

    def raise_if_any(self) -> None:
        if self.wrong:
            raise InvalidArgument.of(self.wrong + self.unbuilt)
        if self.unbuilt:
            listed = InvalidArgument.of(self.unbuilt)
            raise Unimplemented(listed.message, listed.details)
