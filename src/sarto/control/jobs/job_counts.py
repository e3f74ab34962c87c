"""The number of tuning jobs in each state over the whole service, for metrics."""

from __future__ import annotations

import sqlalchemy as sa

from sarto.control.access import authorization
from sarto.control.access.principal import Principal
from sarto.control.context import Control
from sarto.storage.database.tables import tuning_job

PERMISSION = "monitoring.timeSeries.list"


def jobs_by_state(control: Control, principal: Principal) -> dict[str, int]:
    """Counts over all projects. Raises PermissionDenied."""
    authorization.require_everywhere(control.database, principal, PERMISSION)
    counted = sa.select(tuning_job.c.state, sa.func.count()).group_by(tuning_job.c.state)
    with control.database.reading() as connection:
        return {state.removeprefix("JOB_STATE_").lower(): count for state, count in connection.execute(counted)}
