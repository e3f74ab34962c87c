"""Remedies of a run that was refused for lack of memory: the engine names the change, control the label or setting."""

from __future__ import annotations

from sarto.contract.tuning_run import Remedy
from sarto.control.jobs.remedies import with_remedies
from sarto.errors import ResourceExhausted

STATUS = ResourceExhausted("The base model needs about 9 MiB, and 5 MiB are free.").to_status()


def test_an_error_for_lack_of_memory_ends_with_the_labels_and_settings_that_would_help() -> None:
    remedies = [
        Remedy(kind="quantisation", value="nf4", needed_bytes=3 << 20),
        Remedy(kind="devices", value="2", needed_bytes=5 << 20),
        Remedy(kind="low_memory"),
    ]
    assert with_remedies(STATUS, remedies) == {
        "code": 8,
        "message": "The base model needs about 9 MiB, and 5 MiB are free. To make it fit, set the label"
        " sarto-quantisation=nf4, with which it needs 3 MiB; or have the administrator set devices=2, with which it"
        ' needs 5 MiB on each GPU; or set the label sarto-low-memory to "true".',
    }


def test_another_error_stays_as_it_is() -> None:
    assert with_remedies(STATUS, []) is STATUS
