"""Labels: their number, their characters, and the labels that a user cannot change."""

from __future__ import annotations

from collections.abc import Mapping

from sarto.errors import FieldViolation, InvalidArgument

NAME_CHARACTERS = 128


MOST_LABELS = 64


LABEL_CHARACTERS = 64


def word_faults(labels: Mapping[str, str], path: str) -> list[FieldViolation]:
    """Faults of labels in general, for any resource."""
    faults = []
    if len(labels) > MOST_LABELS:
        faults.append(FieldViolation(path, f"{len(labels)} labels are given; at most {MOST_LABELS} are allowed."))
    for key, value in labels.items():
        rule = f"have at most {LABEL_CHARACTERS} lower case letters, digits, underscores and dashes."
        if not key or not _is_label(key) or not key[0].isalpha():
            rule = f'The label key "{key}" must begin with a lower case letter and {rule}'
            faults.append(FieldViolation(f"{path}[{key}]", rule))
        elif not _is_label(value):
            faults.append(FieldViolation(f"{path}[{key}]", f'The label value "{value}" must {rule}.'))
    return faults


def check_change(labels: Mapping[str, str], before: Mapping[str, str], path: str) -> None:
    """Raises InvalidArgument for labels that are new and wrong; clients also send back those that the service set."""
    if faults := word_faults({key: value for key, value in labels.items() if before.get(key) != value}, path):
        raise InvalidArgument.of(faults)


def _is_label(text: str) -> bool:
    """Letters of any script without capitals, digits, `-` and `_`."""
    allowed = (c in "_-" or c.isdigit() or (c.isalpha() and c == c.lower()) for c in text)
    return len(text) <= LABEL_CHARACTERS and all(allowed)
