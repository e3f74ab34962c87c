"""The evaluation report of a tuning job, as JSON and as a page."""

from __future__ import annotations

from typing import Any

import orjson

from sarto.contract.run_folder import EVALUATION_REPORT_FOLDER, REPORT_JSON_FILE, REPORT_PAGE_FILE
from sarto.control.access import authorization, quoting
from sarto.control.access.principal import Principal
from sarto.control.context import Control
from sarto.control.jobs import tuning_jobs
from sarto.control.runs import sealed_files
from sarto.control.runs.evaluations import report_folder
from sarto.errors import NotFound
from sarto.names import ResourceName


def report(control: Control, principal: Principal, name: ResourceName) -> dict[str, Any]:
    """The standard report of a job as JSON. Raises NotFound if there is none yet."""
    content: dict[str, Any] = orjson.loads(_report_file(control, principal, name, REPORT_JSON_FILE))
    return content


def page(control: Control, principal: Principal, name: ResourceName) -> bytes:
    """The standard report as one HTML page."""
    return _report_file(control, principal, name, REPORT_PAGE_FILE)


def _report_file(control: Control, principal: Principal, name: ResourceName, file: str) -> bytes:
    project = authorization.require(control.database, principal, "aiplatform.tuningJobs.get", name.project).number
    quoting.check_reads_data(control, principal, project, tuning_jobs.get(control, principal, name))
    path = report_folder(control.job_folder(name.id)) / EVALUATION_REPORT_FOLDER / file
    if not path.exists():
        raise NotFound(
            f"TuningJob {name} has no evaluation report: it is written at the end of a job with validation data."
        )
    return sealed_files.read(control, name.id, path)
