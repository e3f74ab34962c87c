"""The experiment of a job, which holds its time series."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from sarto.control.aip import times
from sarto.control.context import AnyRow
from sarto.names import ResourceName
from sarto.storage.database.tables import experiment


def insert_experiment(connection: Connection, row: AnyRow, now: float) -> str:
    """The name of the job's experiment, unique in its project: its start time to the microsecond."""
    micros = int(now * 1e6)
    while True:
        moment = times.timestamp(micros / 1e6)
        digits = "".join(c for c in moment if c.isdigit())
        identifier = f"tuning-experiment-{digits}"
        taken = sa.select(experiment.c.id).where(experiment.c.project == row.project, experiment.c.id == identifier)
        if connection.execute(taken).first() is None:
            break
        micros += 1
    connection.execute(
        experiment.insert().values(project=row.project, id=identifier, location=row.location, job=row.id)
    )
    return str(ResourceName(row.project, row.location, "metadataStores", "default")) + f"/contexts/{identifier}"
