"""Labels of a tuning job: their syntax, the labels that are switches, and the labels that the service sets."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from sarto.control.aip.labels import LABEL_CHARACTERS, word_faults
from sarto.control.jobs.source_model import SourceModel
from sarto.control.jobs.violations import ROOT, Violations
from sarto.schema.tuning_jobs import TuningJob

OUR_LABELS = "sarto-"
BASE_LABEL = "sarto-base"
QUANTISATIONS = ("int8", "nf4")
"""Quantisations of the base of a job and its model."""
STOP_EARLY_LABEL, LOW_MEMORY_LABEL = "sarto-stop-early", "sarto-low-memory"
QUANTISATION_LABEL = "sarto-quantisation"
LEVEL_LABEL, LEVELS = "sarto-distillation", ("sequence", "token")
BEST_LABEL, BEST = "sarto-default-checkpoint", "best"


@dataclass(frozen=True)
class Switches:
    """The choices of a job that the API has no field for. Everything behind `control` gets these, not the labels."""

    stop_early: bool = False
    low_memory: bool = False
    quantisation: str = ""
    """Empty leaves the base as it is."""
    distillation_level: str = ""
    """Empty lets the service choose."""
    best_is_default: bool = False
    """The best checkpoint, not the last one, becomes the model's default."""

    @classmethod
    def of(cls, labels: Mapping[str, str]) -> Switches:
        """From labels that passed `check`."""
        return cls(
            stop_early=labels.get(STOP_EARLY_LABEL) == "true",
            low_memory=labels.get(LOW_MEMORY_LABEL) == "true",
            quantisation=labels.get(QUANTISATION_LABEL, ""),
            distillation_level=labels.get(LEVEL_LABEL, ""),
            best_is_default=labels.get(BEST_LABEL) == BEST,
        )


def base_label(source: SourceModel) -> str:
    """The base weights' id as a label value: lower case, with hyphens for characters that labels do not allow."""
    return re.sub(r"[^a-z0-9_-]", "-", source.entry.weights.id.lower())[:LABEL_CHARACTERS]


def check(job: TuningJob, source: SourceModel | None, faults: Violations) -> None:
    path = f"{ROOT}.labels"
    faults.wrong.extend(word_faults(job.labels, path))
    for key, value in job.labels.items():
        where = f"{path}[{key}]"
        if key in (STOP_EARLY_LABEL, LOW_MEMORY_LABEL):
            if value not in ("true", "false"):
                faults.add(where, f'The label "{key}" is "true" or "false".')
            elif key == STOP_EARLY_LABEL and value == "true" and not _has_validation(job):
                faults.add(where, "Stopping early needs validation data; name a validationDatasetUri.")
        elif key == QUANTISATION_LABEL:
            _check_quantisation(value, source, where, faults)
        elif key == LEVEL_LABEL:
            if job.distillation_spec is None or value not in LEVELS:
                faults.add(where, f'The label "{key}" is {" or ".join(LEVELS)}, in a job with a distillationSpec.')
        elif key == BEST_LABEL and value == BEST:
            continue
        elif key.startswith(OUR_LABELS) and source and (key, value) != (BASE_LABEL, base_label(source)):
            faults.add(where, f'Labels beginning with "{OUR_LABELS}" are set by the service.')


def _check_quantisation(value: str, source: SourceModel | None, where: str, faults: Violations) -> None:
    if value not in QUANTISATIONS:
        faults.add(where, f'The label "{QUANTISATION_LABEL}" is one of {", ".join(QUANTISATIONS)}.')
    elif source is not None and source.parent is not None and value != source.quantisation:
        form = f"quantised to {source.quantisation}" if source.quantisation else "as it is"
        faults.add(where, f"{source.parent.versioned_name} was tuned on its base {form}; leave the label out.")


def _has_validation(job: TuningJob) -> bool:
    spec = job.tuning_spec
    return spec is not None and bool(spec.validation_dataset_uri)
