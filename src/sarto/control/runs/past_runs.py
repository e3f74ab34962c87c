"""Forecast and measured time of a project's finished jobs, which correct its next forecasts.

Only the project's own jobs count: those of other projects would reveal their activity.
"""

from __future__ import annotations

import orjson
import sqlalchemy as sa

from sarto.contract.run_folder import PAST_RUN
from sarto.contract.tuning_run import PastRun
from sarto.control.jobs.states import SUCCEEDED
from sarto.schema.tuning_jobs import TuningJobMetadata
from sarto.storage.database.database import Database
from sarto.storage.database.tables import tuning_job

LAST_JOBS = 20


def of_project(database: Database, project: str) -> list[PastRun]:
    """The last jobs of the project that ran without interruption, newest first."""
    query = (
        sa.select(tuning_job.c.resource)
        .where(tuning_job.c.state == str(SUCCEEDED), tuning_job.c.project == project)
        .order_by(tuning_job.c.create_time.desc())
        .limit(LAST_JOBS)
    )
    with database.reading() as connection:
        resources = [orjson.loads(text) for text in connection.execute(query).scalars()]
    # Only this part of the jobs is decoded: their statistics quote data, and take most of the time.
    metadata = [TuningJobMetadata.read(resource.get("tuningJobMetadata", {})) for resource in resources]
    details = [(one.effective_parameters or {}).get("details", {}) for one in metadata]
    return [PastRun.model_validate(each[PAST_RUN]) for each in details if PAST_RUN in each]
