"""Quotes of dataset rows are shown only to callers who may read the dataset; others get the resource without them.

The right is checked each time that the resource is read.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any

from sarto.control.access import run_identity
from sarto.control.access.principal import Principal
from sarto.control.context import Control
from sarto.schema.tuning_jobs import dataset_of, spec_of

SEALED_WORDS = "The rest may quote the data and is encrypted with the job's files."
WORDS = "The rest may quote the data and is shown only to callers who may read it."
QUOTES = ("userDatasetExamples", "droppedExampleReasons")
"""Fields of a method's statistics that contain text of rows."""


def shown(control: Control, principal: Principal, project: str, resource: dict[str, Any]) -> dict[str, Any]:
    """A tuning job in the form for this caller."""
    return shown_all(control, principal, project, [resource])[0]


def shown_all(
    control: Control, principal: Principal, project: str, resources: Iterable[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Tuning jobs in the form for this caller."""

    @cache  # the jobs of a page often share their datasets
    def can_read(uris: tuple[str, ...]) -> bool:
        return run_identity.can_read(control, principal, project, uris)

    def view(resource: dict[str, Any]) -> dict[str, Any]:
        plain = without_quotes(resource)
        # Most jobs quote nothing: then the right need not be checked, which took half the time of a list.
        return resource if plain == resource or can_read(tuple(data_of(resource))) else plain

    return [view(resource) for resource in resources]


def without_quotes(resource: dict[str, Any]) -> dict[str, Any]:
    """A job in the form for callers who may not read its data."""
    shown = dict(resource)
    if of_methods := resource.get("tuningDataStats"):
        shown["tuningDataStats"] = {
            method: {name: value for name, value in stats.items() if name not in QUOTES}
            for method, stats in of_methods.items()
        }
    if error := resource.get("error"):
        shown["error"] = status_without_quotes(error, WORDS)
    if runs := resource.get("evaluateDatasetRuns"):
        shown["evaluateDatasetRuns"] = [_result(run) for run in runs]
    return shown


def batch(control: Control, principal: Principal, project: str, resource: dict[str, Any]) -> dict[str, Any]:
    """A batch prediction in the form for this caller."""
    if "error" not in resource or can_read_data(control, principal, project, resource):
        return resource
    return _without_error(resource)


def operation(control: Control, principal: Principal, project: str, resource: dict[str, Any]) -> dict[str, Any]:
    """An operation in the form for this caller: the metadata of an export or an evaluation name the data that it
    read."""
    if can_read_data(control, principal, project, resource):
        return resource
    shown = _without_error(resource)
    if results := resource["metadata"].get("modelResults"):
        cut = {model: _result(result) for model, result in results.items()}
        shown["metadata"] = {**resource["metadata"], "modelResults": cut}
    return shown


def about(resource: dict[str, Any]) -> dict[str, Any]:
    """Metadata of an operation on a job's model: the data of that job."""
    uris = list(data_of(resource))
    return {"dataset": {"gcsSource": {"uris": uris}}} if uris else {}


def _result(run: dict[str, Any]) -> dict[str, Any]:
    """The result of evaluating a model, with its error cut."""
    if "error" not in run:
        return run
    return {**run, "error": {"code": run["error"]["code"], "message": f"The evaluation failed. {WORDS}"}}


def _without_error(resource: dict[str, Any]) -> dict[str, Any]:
    """The resource with its error cut at the first colon."""
    shown = dict(resource)
    if error := resource.get("error"):
        words = unquoted(error["message"])
        shown["error"] = {
            "code": error["code"],
            "message": words if words == error["message"] else f"{words}. {WORDS}",
        }
    return shown


def event(record: dict[str, Any]) -> dict[str, Any]:
    """An event of a job in the form for callers who may not read its data."""
    return {**record, "message": unquoted(record["message"])}


def can_read_data(control: Control, principal: Principal, project: str, resource: dict[str, Any]) -> bool:
    """Whether a caller may read all data of the project's job."""
    return run_identity.can_read(control, principal, project, data_of(resource))


def check_reads_data(control: Control, principal: Principal, project: str, resource: dict[str, Any]) -> None:
    """Check for a response that consists of quotes. Raises PermissionDenied."""
    for uri in data_of(resource):
        run_identity.check_quoted(control, principal, project, uri)


def data_of(resource: dict[str, Any]) -> Iterator[str]:
    """The URIs of a job's datasets, of a batch prediction's input, or of an operation's data."""
    spec = spec_of(resource)
    yield from filter(None, (dataset_of(spec), spec.get("validationDatasetUri")))
    for source in (resource.get("inputConfig", {}), resource.get("metadata", {}).get("dataset", {})):
        yield from source.get("gcsSource", {}).get("uris", ())


def status_without_quotes(status: dict[str, Any], words: str = SEALED_WORDS) -> dict[str, Any]:
    """A run's status: its first line, which has files, counts and limits; of its details, the paths of faults."""
    head, *rest = re.split(r"[\n\t]", str(status.get("message", "")), maxsplit=1)
    details = [
        {**one, "fieldViolations": [{"field": fault["field"]} for fault in one["fieldViolations"]]}
        for one in status.get("details", ())
        if "fieldViolations" in one
    ]
    message = f"{head} {words}" if rest or details else head
    return {"code": status["code"], "message": message} | ({"details": details} if details else {})


def unquoted(words: str) -> str:
    """A message up to its first colon or the end of its first line: the rest may quote a row."""
    return re.split(r": |[\n\t]", words, maxsplit=1)[0]
