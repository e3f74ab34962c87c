"""Numbers about the whole service, for who administers it."""

from __future__ import annotations

import sqlalchemy as sa

from sarto.control import iam
from sarto.control.auth import Principal
from sarto.control.context import Control
from sarto.storage.tables import tuning_job

PERMISSION = "monitoring.timeSeries.list"


def jobs_by_state(control: Control, principal: Principal) -> dict[str, int]:
    """Over all projects. Raises PermissionDenied."""
    iam.require_everywhere(control.database, principal, PERMISSION)
    counted = sa.select(tuning_job.c.state, sa.func.count()).group_by(tuning_job.c.state)
    with control.database.reading() as connection:
        return {state.removeprefix("JOB_STATE_").lower(): count for state, count in connection.execute(counted)}
