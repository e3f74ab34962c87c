"""How an experiment is written: a job's row and its metric points as contexts, artifacts, and TensorBoard resources.

The names hang together: experiment E of a job J has the run `E-J`, the artifact `E-J-tb-run`, and series under
`tensorboards/PROJECT/experiments/E/runs/E-J`. Used by `experiments`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sarto.control import progress
from sarto.control.context import Control
from sarto.control.events import timestamp
from sarto.control.progress import METRIC_NAMES
from sarto.control.projects import Project
from sarto.names import LocationName
from sarto.schema.tuning_jobs import JobState

STORE = "metadataStores/default"
ARTIFACT_ENDING = "-tb-run"
SCHEMA_VERSION = "0.0.1"
STATES = {
    JobState.JOB_STATE_SUCCEEDED: "COMPLETE",
    JobState.JOB_STATE_FAILED: "FAILED",
    JobState.JOB_STATE_CANCELLED: "CANCELLED",
}
"""States of an experiment run; all others are RUNNING."""


@dataclass(frozen=True)
class Found:
    """An experiment with its job."""

    project: str
    location: str
    id: str
    job: dict[str, Any]

    @property
    def location_name(self) -> LocationName:
        return LocationName(self.project, self.location)

    @property
    def job_id(self) -> str:
        return str(self.job["name"]).rpartition("/")[2]

    @property
    def run_id(self) -> str:
        return f"{self.id}-{self.job_id}"

    @property
    def tensorboard(self) -> str:
        return f"{self.location_name}/tensorboards/{self.project}"

    @property
    def tensorboard_run(self) -> str:
        return f"{self.tensorboard}/experiments/{self.id}/runs/{self.run_id}"

    @property
    def times(self) -> dict[str, str]:
        return {"createTime": self.job["startTime"], "updateTime": self.job["updateTime"], "etag": "1"}


def artifact(found: Found) -> dict[str, Any]:
    name = f"{found.run_id}{ARTIFACT_ENDING}"
    return {
        "name": f"{found.location_name}/{STORE}/artifacts/{name}",
        "displayName": name,
        "schemaTitle": "google.VertexTensorboardRun",
        "schemaVersion": SCHEMA_VERSION,
        "metadata": {"resourceName": found.tensorboard_run, "vertex_experiment_tracking": True},
        **found.times,
    }


def tensorboard(project: Project, parent: LocationName) -> dict[str, Any]:
    moment = timestamp(project.create_time)
    return {
        "name": f"{LocationName(project.number, parent.location)}/tensorboards/{project.number}",
        "displayName": "Tuning metrics",
        "isDefault": True,
        "createTime": moment,
        "updateTime": moment,
        "etag": "1",
    }


def tensorboard_experiment(found: Found) -> dict[str, Any]:
    name = f"{found.tensorboard}/experiments/{found.id}"
    return {"name": name, "displayName": found.id, "source": "tuning", **found.times}


def tensorboard_run(found: Found) -> dict[str, Any]:
    return {"name": found.tensorboard_run, "displayName": found.job_id, **found.times}


def experiment_context(found: Found) -> dict[str, Any]:
    return {
        "name": f"{found.location_name}/{STORE}/contexts/{found.id}",
        "displayName": found.id,
        "schemaTitle": "system.Experiment",
        "schemaVersion": SCHEMA_VERSION,
        "metadata": {"experiment_deleted": False, "backing_tensorboard_resource": found.tensorboard},
        **found.times,
    }


def run_context(control: Control, found: Found) -> dict[str, Any]:
    series = progress.points(control.database, found.project, found.job_id)
    effective = found.job.get("tuningJobMetadata", {}).get("effectiveParameters", {})
    return {
        "name": f"{found.location_name}/{STORE}/contexts/{found.run_id}",
        "displayName": found.job_id,
        "parentContexts": [f"{found.location_name}/{STORE}/contexts/{found.id}"],
        "schemaTitle": "system.ExperimentRun",
        "schemaVersion": SCHEMA_VERSION,
        "metadata": {
            "_params": {name: value for name, value in effective.items() if not isinstance(value, dict)},
            "_metrics": {name.removeprefix("/"): points[-1][1] for name, points in series.items()},
            "_state": STATES.get(JobState(found.job["state"]), "RUNNING"),
        },
        **found.times,
    }


def _series_id(name: str) -> str:
    return str(METRIC_NAMES.index(name) + 1)


def time_series(found: Found, name: str, points: list[tuple[int, float, float]]) -> dict[str, Any]:
    step, _, moment = points[-1]
    return {
        "name": f"{found.tensorboard_run}/timeSeries/{_series_id(name)}",
        "displayName": name,
        "valueType": "SCALAR",
        "pluginName": "scalars",
        "metadata": {"maxStep": str(step), "maxWallTime": timestamp(moment)},
        **found.times,
    }


def data(name: str, points: list[tuple[int, float, float]]) -> dict[str, Any]:
    values = [
        {"step": str(step), "wallTime": timestamp(moment), "scalar": {"value": value}} for step, value, moment in points
    ]
    series = _series_id(name) if name else ""
    return {"tensorboardTimeSeriesId": series, "valueType": "SCALAR", "values": values}
