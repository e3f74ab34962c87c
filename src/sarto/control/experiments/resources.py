"""The wire format of an experiment: contexts, artifacts, and TensorBoard resources from a job's row and metric points.

The names are related: experiment E of a job J has the run `E-J`, the artifact `E-J-tb-run`, and series under
`tensorboards/PROJECT/experiments/E/runs/E-J`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import orjson

from sarto.control.access.projects import Project
from sarto.control.aip.times import timestamp
from sarto.control.context import Control
from sarto.control.runs import progress
from sarto.control.runs.progress import METRIC_NAMES
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
class Experiment:
    """An experiment with its job."""

    project: str
    location: str
    id: str
    job_id: str
    state: JobState
    start_time: str
    update_time: str
    effective_parameters: dict[str, Any]

    @classmethod
    def of(cls, project: str, location: str, identifier: str, resource: str) -> Experiment:
        """`resource` is the JSON of the job. It is not read as a TuningJob: lists have a hundred jobs a page."""
        job = orjson.loads(resource)
        return cls(
            project,
            location,
            identifier,
            job_id=job["name"].rpartition("/")[2],
            state=JobState(job["state"]),
            start_time=job["startTime"],
            update_time=job["updateTime"],
            effective_parameters=job.get("tuningJobMetadata", {}).get("effectiveParameters", {}),
        )

    @property
    def location_name(self) -> LocationName:
        return LocationName(self.project, self.location)

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
        return {"createTime": self.start_time, "updateTime": self.update_time, "etag": "1"}


def artifact(experiment: Experiment) -> dict[str, Any]:
    name = f"{experiment.run_id}{ARTIFACT_ENDING}"
    return {
        "name": f"{experiment.location_name}/{STORE}/artifacts/{name}",
        "displayName": name,
        "schemaTitle": "google.VertexTensorboardRun",
        "schemaVersion": SCHEMA_VERSION,
        "metadata": {"resourceName": experiment.tensorboard_run, "vertex_experiment_tracking": True},
        **experiment.times,
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


def tensorboard_experiment(experiment: Experiment) -> dict[str, Any]:
    name = f"{experiment.tensorboard}/experiments/{experiment.id}"
    return {"name": name, "displayName": experiment.id, "source": "tuning", **experiment.times}


def tensorboard_run(experiment: Experiment) -> dict[str, Any]:
    return {"name": experiment.tensorboard_run, "displayName": experiment.job_id, **experiment.times}


def experiment_context(experiment: Experiment) -> dict[str, Any]:
    return {
        "name": f"{experiment.location_name}/{STORE}/contexts/{experiment.id}",
        "displayName": experiment.id,
        "schemaTitle": "system.Experiment",
        "schemaVersion": SCHEMA_VERSION,
        "metadata": {"experiment_deleted": False, "backing_tensorboard_resource": experiment.tensorboard},
        **experiment.times,
    }


def run_context(control: Control, experiment: Experiment) -> dict[str, Any]:
    series = progress.points(control.database, experiment.project, experiment.job_id)
    return {
        "name": f"{experiment.location_name}/{STORE}/contexts/{experiment.run_id}",
        "displayName": experiment.job_id,
        "parentContexts": [f"{experiment.location_name}/{STORE}/contexts/{experiment.id}"],
        "schemaTitle": "system.ExperimentRun",
        "schemaVersion": SCHEMA_VERSION,
        "metadata": {
            "_params": {
                name: value for name, value in experiment.effective_parameters.items() if not isinstance(value, dict)
            },
            "_metrics": {name.removeprefix("/"): points[-1][1] for name, points in series.items()},
            "_state": STATES.get(experiment.state, "RUNNING"),
        },
        **experiment.times,
    }


def _series_id(name: str) -> str:
    return str(METRIC_NAMES.index(name) + 1)


def time_series(experiment: Experiment, name: str, points: list[tuple[int, float, float]]) -> dict[str, Any]:
    step, _, moment = points[-1]
    return {
        "name": f"{experiment.tensorboard_run}/timeSeries/{_series_id(name)}",
        "displayName": name,
        "valueType": "SCALAR",
        "pluginName": "scalars",
        "metadata": {"maxStep": str(step), "maxWallTime": timestamp(moment)},
        **experiment.times,
    }


def data(name: str, points: list[tuple[int, float, float]]) -> dict[str, Any]:
    values = [
        {"step": str(step), "wallTime": timestamp(moment), "scalar": {"value": value}} for step, value, moment in points
    ]
    series = _series_id(name) if name else ""
    return {"tensorboardTimeSeriesId": series, "valueType": "SCALAR", "values": values}
