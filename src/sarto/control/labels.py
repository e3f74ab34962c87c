"""Labels of a tuning job: what a label may hold, and those that are switches or set by the service."""

from __future__ import annotations

import re
from collections.abc import Mapping

from sarto.control.evaluation_checks import BEST, BEST_LABEL
from sarto.control.faults import ROOT, Faults
from sarto.control.tuning_sources import Source
from sarto.errors import FieldViolation, InvalidArgument
from sarto.schema.tuning_jobs import TuningJob

MOST_LABELS = 64
LABEL_CHARACTERS = 64
OUR_LABELS = "sarto-"
BASE_LABEL = "sarto-base"
STOP_EARLY_LABEL, LOW_MEMORY_LABEL = "sarto-stop-early", "sarto-low-memory"
"""Switches that the API has no field for: a label of a job, "true" or "false"."""
QUANTISATION_LABEL = "sarto-quantisation"
QUANTISATIONS = ("int8", "nf4")
"""What the base of a job, and of the model it makes, may be quantised to."""


def base_label(source: Source) -> str:
    """The base weights' id as a label value: lower case, and every character that labels do not have as a hyphen."""
    return re.sub(r"[^a-z0-9_-]", "-", source.entry.weights.id.lower())[:LABEL_CHARACTERS]


def word_faults(labels: Mapping[str, str], path: str) -> list[FieldViolation]:
    """What is wrong with labels as such, of whatever they are."""
    faults = []
    if len(labels) > MOST_LABELS:
        faults.append(FieldViolation(path, f"{len(labels)} labels are given; at most {MOST_LABELS} are allowed."))
    for key, value in labels.items():
        wanted = f"have at most {LABEL_CHARACTERS} lower case letters, digits, underscores and dashes."
        if not key or not _is_label(key) or not key[0].isalpha():
            wanted = f'The label key "{key}" must begin with a lower case letter and {wanted}'
            faults.append(FieldViolation(f"{path}[{key}]", wanted))
        elif not _is_label(value):
            faults.append(FieldViolation(f"{path}[{key}]", f'The label value "{value}" must {wanted}'))
    return faults


def check_change(given: Mapping[str, str], before: Mapping[str, str], path: str) -> None:
    """Raises InvalidArgument for labels that are new and wrong; clients send back those that the service set, too."""
    if faults := word_faults({key: value for key, value in given.items() if before.get(key) != value}, path):
        raise InvalidArgument.of(faults)


def check(job: TuningJob, source: Source | None, faults: Faults) -> None:
    path = f"{ROOT}.labels"
    faults.wrong.extend(word_faults(job.labels, path))
    for key, value in job.labels.items():
        where = f"{path}[{key}]"
        if key in (STOP_EARLY_LABEL, LOW_MEMORY_LABEL):
            if value not in ("true", "false"):
                faults.add(where, f'The label "{key}" is "true" or "false".')
            elif key == STOP_EARLY_LABEL and value == "true" and not _has_validation(job):
                faults.add(where, "Stopping early needs validation data to look at; give a validationDatasetUri.")
        elif key == QUANTISATION_LABEL:
            _check_quantisation(value, source, where, faults)
        elif key == BEST_LABEL and value == BEST:
            continue
        elif key.startswith(OUR_LABELS) and source and (key, value) != (BASE_LABEL, base_label(source)):
            faults.add(where, f'Labels beginning with "{OUR_LABELS}" are set by the service.')


def _check_quantisation(value: str, source: Source | None, where: str, faults: Faults) -> None:
    if value not in QUANTISATIONS:
        faults.add(where, f'The label "{QUANTISATION_LABEL}" is one of {", ".join(QUANTISATIONS)}.')
    elif source is not None and source.parent is not None and value != source.quantisation:
        form = f"quantised to {source.quantisation}" if source.quantisation else "as it is"
        faults.add(where, f"{source.parent.versioned_name} was tuned on its base {form}; leave the label out.")


def _has_validation(job: TuningJob) -> bool:
    spec = job.supervised_tuning_spec
    return spec is not None and bool(spec.validation_dataset_uri)


def _is_label(text: str) -> bool:
    """Letters of any script, as long as they are not capitals."""
    allowed = (c in "_-" or c.isdigit() or (c.isalpha() and c == c.lower()) for c in text)
    return len(text) <= LABEL_CHARACTERS and all(allowed)
