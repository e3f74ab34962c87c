"""A job's experiment as clients read it: metadata contexts, their artifact, and the time series of a TensorBoard.

Everything is made from the job's row and its metric points when it is read. The names hang together: experiment E of a
job J has the run `E-J`, the artifact `E-J-tb-run`, and series under `tensorboards/PROJECT/experiments/E/runs/E-J`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import orjson
import sqlalchemy as sa

from sarto.control import filters, iam, paging, progress
from sarto.control.auth import Principal
from sarto.control.context import Control
from sarto.control.events import timestamp
from sarto.control.progress import METRIC_NAMES
from sarto.errors import NotFound
from sarto.names import LocationName, check_id
from sarto.schema.tuning_jobs import JobState
from sarto.storage.tables import experiment, tuning_job

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


def get_context(control: Control, principal: Principal, parent: LocationName, context: str) -> dict[str, Any]:
    """The context of an experiment or of its run. Raises NotFound."""
    found = _find(control, principal, "aiplatform.contexts.get", parent, context, f"contexts/{context}")
    return _experiment_context(found) if context == found.id else _run_context(control, found)


def list_contexts(
    control: Control,
    principal: Principal,
    parent: LocationName,
    page_size: int = 0,
    page_token: str = "",
    filter: str = "",
) -> tuple[list[dict[str, Any]], str]:
    """Contexts by `schema_title`, `parent_contexts`, `display_name` and `name`, newest experiment first."""
    project = iam.require(control.database, principal, "aiplatform.contexts.list", parent.project).number
    tree, scope = filters.parse(filter), ("contexts", project, parent.location, filter)
    size, before = paging.page_size(page_size), paging.start(page_token, *scope)
    query = (
        sa.select(experiment.c.id, tuning_job.c.resource)
        .join(tuning_job, sa.and_(tuning_job.c.project == experiment.c.project, tuning_job.c.id == experiment.c.job))
        .where(experiment.c.project == project, experiment.c.location == parent.location)
        .order_by(experiment.c.id.desc())
        .limit(size + 1)
    )
    if named := _parents(tree):
        query = query.where(experiment.c.id.in_(named))
    if before:
        query = query.where(experiment.c.id < before)
    with control.database.reading() as connection:
        rows = connection.execute(query).all()
    answers: list[dict[str, Any]] = []
    for row in rows[:size]:
        found = Found(project, parent.location, row.id, orjson.loads(row.resource))
        both = (_experiment_context(found), _run_context(control, found))
        answers.extend(one for one in both if filters.matches(tree, lambda node, one=one: _holds(node, one)))  # type: ignore[misc]
    return answers, paging.token(rows[size - 1].id, *scope) if len(rows) > size else ""


def list_executions(
    control: Control, principal: Principal, parent: LocationName, filter: str = ""
) -> tuple[list[dict[str, Any]], str]:
    """Runs of the oldest kind of experiment, of which we have none; the filter is checked all the same."""
    iam.require(control.database, principal, "aiplatform.executions.list", parent.project)
    filters.parse(filter)
    return [], ""


def get_artifact(control: Control, principal: Principal, parent: LocationName, artifact: str) -> dict[str, Any]:
    """The artifact that leads from a run's context to its TensorBoard run. Raises NotFound."""
    run = artifact.removesuffix(ARTIFACT_ENDING)
    found = _find(control, principal, "aiplatform.artifacts.get", parent, run, f"artifacts/{artifact}")
    if artifact != f"{found.run_id}{ARTIFACT_ENDING}":
        raise NotFound(f"Artifact {parent}/{STORE}/artifacts/{artifact} is not found.")
    return {
        "name": f"{found.location_name}/{STORE}/artifacts/{artifact}",
        "displayName": artifact,
        "schemaTitle": "google.VertexTensorboardRun",
        "schemaVersion": SCHEMA_VERSION,
        "metadata": {"resourceName": found.tensorboard_run, "vertex_experiment_tracking": True},
        **found.times,
    }


def get_tensorboard(control: Control, principal: Principal, parent: LocationName, tensorboard: str) -> dict[str, Any]:
    """A project has one TensorBoard in each location, named by its number. Raises NotFound."""
    project = iam.require(control.database, principal, "aiplatform.tensorboards.get", parent.project)
    if tensorboard != project.number:
        raise NotFound(f"Tensorboard {parent}/tensorboards/{tensorboard} is not found.")
    moment = timestamp(project.create_time)
    return {
        "name": f"{LocationName(project.number, parent.location)}/tensorboards/{project.number}",
        "displayName": "Tuning metrics",
        "isDefault": True,
        "createTime": moment,
        "updateTime": moment,
        "etag": "1",
    }


def get_tensorboard_experiment(
    control: Control, principal: Principal, parent: LocationName, experiment_id: str
) -> dict[str, Any]:
    permission = "aiplatform.tensorboardExperiments.get"
    found = _find(control, principal, permission, parent, experiment_id, f"experiments/{experiment_id}")
    return {
        "name": f"{found.tensorboard}/experiments/{found.id}",
        "displayName": found.id,
        "source": "tuning",
        **found.times,
    }


def get_tensorboard_run(control: Control, principal: Principal, parent: LocationName, run: str) -> dict[str, Any]:
    found = _find(control, principal, "aiplatform.tensorboardRuns.get", parent, run, f"runs/{run}")
    return {"name": found.tensorboard_run, "displayName": found.job_id, **found.times}


def list_time_series(
    control: Control, principal: Principal, parent: LocationName, run: str
) -> tuple[list[dict[str, Any]], str]:
    """The metrics a job has so far; there are too few for pages."""
    found = _find(control, principal, "aiplatform.tensorboardTimeSeries.list", parent, run, f"runs/{run}")
    series = progress.points(control.database, found.project, found.job_id)
    return [_time_series(found, name, points) for name, points in series.items()], ""


def get_time_series(
    control: Control, principal: Principal, parent: LocationName, run: str, series: str
) -> dict[str, Any]:
    found = _find(control, principal, "aiplatform.tensorboardTimeSeries.get", parent, run, f"timeSeries/{series}")
    name = _metric(series)
    points = progress.points(control.database, found.project, found.job_id, (name,))
    if name not in points:
        raise NotFound(f"Time series {found.tensorboard_run}/timeSeries/{series} is not found.")
    return _time_series(found, name, points[name])


def read_time_series(
    control: Control, principal: Principal, parent: LocationName, run: str, series: str
) -> dict[str, Any]:
    """Every point of one metric: `{"timeSeriesData": …}`."""
    found = _find(control, principal, "aiplatform.tensorboardTimeSeries.read", parent, run, f"timeSeries/{series}")
    name = _metric(series)
    points = progress.points(control.database, found.project, found.job_id, (name,))
    return {"timeSeriesData": _data(name, points.get(name, []))}


def batch_read(control: Control, principal: Principal, parent: LocationName, names: list[str]) -> dict[str, Any]:
    """Every point of several metrics, by the full names of their time series: `{"timeSeriesData": [...]}`."""
    iam.require(control.database, principal, "aiplatform.tensorboardTimeSeries.read", parent.project)
    answers = []
    for name in names:
        parts = name.split("/")
        if parts[-2:-1] != ["timeSeries"] or parts[-4:-3] != ["runs"]:
            raise NotFound(f"Time series {name} is not found.")
        answers.append(read_time_series(control, principal, parent, parts[-3], parts[-1])["timeSeriesData"])
    return {"timeSeriesData": answers}


def _find(
    control: Control, principal: Principal, permission: str, parent: LocationName, context: str, asked: str
) -> Found:
    """The experiment that `context` names, itself or as its run. Raises NotFound with what was asked for."""
    project = iam.require(control.database, principal, permission, parent.project).number
    check_id(context)
    head = "-".join(context.split("-")[:3])  # tuning-experiment-DIGITS[-JOB]
    query = (
        sa.select(experiment.c.location, tuning_job.c.resource)
        .join(tuning_job, sa.and_(tuning_job.c.project == experiment.c.project, tuning_job.c.id == experiment.c.job))
        .where(experiment.c.project == project, experiment.c.id == head)
    )
    with control.database.reading() as connection:
        row = connection.execute(query).first()
    if row is not None and row.location == parent.location:
        found = Found(project, row.location, head, orjson.loads(row.resource))
        if context in (found.id, found.run_id):
            return found
    raise NotFound(f"{parent}/…/{asked} is not found.")


def _experiment_context(found: Found) -> dict[str, Any]:
    return {
        "name": f"{found.location_name}/{STORE}/contexts/{found.id}",
        "displayName": found.id,
        "schemaTitle": "system.Experiment",
        "schemaVersion": SCHEMA_VERSION,
        "metadata": {"experiment_deleted": False, "backing_tensorboard_resource": found.tensorboard},
        **found.times,
    }


def _run_context(control: Control, found: Found) -> dict[str, Any]:
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


def _parents(tree: filters.Node | None) -> set[str]:
    """Experiments that a filter names as parents, so that not all need to be looked at."""
    if isinstance(tree, filters.All):
        return {name for part in tree.parts for name in _parents(part)}
    if isinstance(tree, filters.Comparison) and tree.field in ("parent_contexts", "parentContexts"):
        return {tree.value.rpartition("/")[2]}
    return set()


def _holds(node: filters.Comparison | filters.Call, context: dict[str, Any]) -> bool:
    if isinstance(node, filters.Call):
        filters.fail(node.position, f'the function "{node.function}" is not known for contexts')
    if node.field in ("parent_contexts", "parentContexts"):
        wanted = node.value.rpartition("/")[2]
        return any(name.rpartition("/")[2] == wanted for name in context.get("parentContexts", ()))
    known = {"schema_title": "schemaTitle", "display_name": "displayName", "name": "name"}
    field = known.get(node.field, node.field)
    if field not in known.values():
        filters.unknown(node, (*known, "parent_contexts"))
    return filters.text_holds(node, str(context.get(field, "")))


def _metric(series: str) -> str:
    """A metric's name by the id of its time series; an id of no metric gives a name that has no points."""
    return METRIC_NAMES[int(series) - 1] if series.isdigit() and 1 <= int(series[:9]) <= len(METRIC_NAMES) else ""


def _series_id(name: str) -> str:
    return str(METRIC_NAMES.index(name) + 1)


def _time_series(found: Found, name: str, points: list[tuple[int, float, float]]) -> dict[str, Any]:
    step, _, moment = points[-1]
    return {
        "name": f"{found.tensorboard_run}/timeSeries/{_series_id(name)}",
        "displayName": name,
        "valueType": "SCALAR",
        "pluginName": "scalars",
        "metadata": {"maxStep": str(step), "maxWallTime": timestamp(moment)},
        **found.times,
    }


def _data(name: str, points: list[tuple[int, float, float]]) -> dict[str, Any]:
    values = [
        {"step": str(step), "wallTime": timestamp(moment), "scalar": {"value": value}} for step, value, moment in points
    ]
    series = _series_id(name) if name else ""
    return {"tensorboardTimeSeriesId": series, "valueType": "SCALAR", "values": values}
