"""A job's experiment: metadata contexts, their artifact, and the time series of a TensorBoard.

Each response is computed from the job's row and its metric points. `resources` has the wire format.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import sqlalchemy as sa

from sarto.control.access import authorization
from sarto.control.access.principal import Principal
from sarto.control.aip import filters, pages
from sarto.control.context import Control
from sarto.control.experiments import resources
from sarto.control.runs import progress
from sarto.control.runs.progress import METRIC_NAMES
from sarto.errors import NotFound
from sarto.names import LocationName, check_id
from sarto.storage.database.tables import experiment, tuning_job

FILTERED = {
    "schema_title": "schemaTitle",
    "display_name": "displayName",
    "name": "name",
    "is_default": "isDefault",
    "source": "source",
}
"""Fields that lists can be filtered by, in both spellings."""


def get_context(control: Control, principal: Principal, parent: LocationName, context: str) -> dict[str, Any]:
    """The context of an experiment or of its run. Raises NotFound."""
    resource = _find(control, principal, "aiplatform.contexts.get", parent, context, f"contexts/{context}")
    return (
        resources.experiment_context(resource) if context == resource.id else resources.run_context(control, resource)
    )


def list_contexts(
    control: Control,
    principal: Principal,
    parent: LocationName,
    page_size: int = 0,
    page_token: str = "",
    filter: str = "",
) -> tuple[list[dict[str, Any]], str]:
    """Contexts by `schema_title`, `parent_contexts`, `display_name` and `name`, newest experiment first."""
    project = authorization.require(control.database, principal, "aiplatform.contexts.list", parent.project).number
    tree = filters.parse(filter)
    scope = ("contexts", project, parent.location, filter)
    experiments, token = _experiments(control, scope, page_size, page_token, _parents(tree))
    contexts = [
        one
        for each in experiments
        for one in (resources.experiment_context(each), resources.run_context(control, each))
    ]
    return [one for one in contexts if _meets(tree, one)], token


def list_executions(
    control: Control, principal: Principal, parent: LocationName, filter: str = ""
) -> tuple[list[dict[str, Any]], str]:
    """Runs of the oldest kind of experiment, of which there are none; the filter is checked."""
    authorization.require(control.database, principal, "aiplatform.executions.list", parent.project)
    filters.parse(filter)
    return [], ""


def list_artifacts(
    control: Control,
    principal: Principal,
    parent: LocationName,
    page_size: int = 0,
    page_token: str = "",
    filter: str = "",
) -> tuple[list[dict[str, Any]], str]:
    """One for each experiment, by `schema_title`, `display_name`, `name` and `in_context`, newest first."""
    project = authorization.require(control.database, principal, "aiplatform.artifacts.list", parent.project).number
    tree = filters.parse(filter)
    scope = ("artifacts", project, parent.location, filter)
    experiments, token = _experiments(control, scope, page_size, page_token)
    rows = [(resources.artifact(each), {each.id, each.run_id}) for each in experiments]
    return [one for one, contexts in rows if _meets(tree, one, contexts)], token


def get_artifact(control: Control, principal: Principal, parent: LocationName, artifact: str) -> dict[str, Any]:
    """The artifact that links a run's context to its TensorBoard run. Raises NotFound."""
    run = artifact.removesuffix(resources.ARTIFACT_ENDING)
    resource = _find(control, principal, "aiplatform.artifacts.get", parent, run, f"artifacts/{artifact}")
    if artifact != f"{resource.run_id}{resources.ARTIFACT_ENDING}":
        raise NotFound(f"Artifact {parent}/{resources.STORE}/artifacts/{artifact} is not found.")
    return resources.artifact(resource)


def list_tensorboards(
    control: Control, principal: Principal, parent: LocationName, filter: str = ""
) -> tuple[list[dict[str, Any]], str]:
    """The project's TensorBoard, unless a filter on `is_default`, `display_name` or `name` excludes it."""
    project = authorization.require(control.database, principal, "aiplatform.tensorboards.list", parent.project)
    board = resources.tensorboard(project, parent)
    return [board] if _meets(filters.parse(filter), board) else [], ""


def get_tensorboard(control: Control, principal: Principal, parent: LocationName, tensorboard: str) -> dict[str, Any]:
    """A project has one TensorBoard in each location, named by its number. Raises NotFound."""
    project = authorization.require(control.database, principal, "aiplatform.tensorboards.get", parent.project)
    if tensorboard != project.number:
        raise NotFound(f"Tensorboard {parent}/tensorboards/{tensorboard} is not found.")
    return resources.tensorboard(project, parent)


def list_tensorboard_experiments(
    control: Control,
    principal: Principal,
    parent: LocationName,
    page_size: int = 0,
    page_token: str = "",
    filter: str = "",
) -> tuple[list[dict[str, Any]], str]:
    """TensorBoard experiments, newest first; a filter may be on `display_name`, `name` and `source`."""
    permission = "aiplatform.tensorboardExperiments.list"
    project = authorization.require(control.database, principal, permission, parent.project).number
    tree = filters.parse(filter)
    scope = ("tensorboardExperiments", project, parent.location, filter)
    experiments, token = _experiments(control, scope, page_size, page_token)
    rows = [resources.tensorboard_experiment(each) for each in experiments]
    return [one for one in rows if _meets(tree, one)], token


def get_tensorboard_experiment(
    control: Control, principal: Principal, parent: LocationName, experiment_id: str
) -> dict[str, Any]:
    permission = "aiplatform.tensorboardExperiments.get"
    resource = _find(control, principal, permission, parent, experiment_id, f"experiments/{experiment_id}")
    return resources.tensorboard_experiment(resource)


def list_tensorboard_runs(
    control: Control, principal: Principal, parent: LocationName, experiment_id: str, filter: str = ""
) -> tuple[list[dict[str, Any]], str]:
    """An experiment has one run. Raises NotFound."""
    permission = "aiplatform.tensorboardRuns.list"
    resource = _find(control, principal, permission, parent, experiment_id, f"experiments/{experiment_id}")
    run = resources.tensorboard_run(resource)
    return [run] if _meets(filters.parse(filter), run) else [], ""


def get_tensorboard_run(control: Control, principal: Principal, parent: LocationName, run: str) -> dict[str, Any]:
    resource = _find(control, principal, "aiplatform.tensorboardRuns.get", parent, run, f"runs/{run}")
    return resources.tensorboard_run(resource)


def list_time_series(
    control: Control, principal: Principal, parent: LocationName, run: str, filter: str = ""
) -> tuple[list[dict[str, Any]], str]:
    """The metrics of a job so far, by `display_name` and `name`, in one page."""
    resource = _find(control, principal, "aiplatform.tensorboardTimeSeries.list", parent, run, f"runs/{run}")
    series = progress.points(control.database, resource.project, resource.job_id)
    tree, rows = (
        filters.parse(filter),
        [resources.time_series(resource, name, points) for name, points in series.items()],
    )
    return [one for one in rows if _meets(tree, one)], ""


def get_time_series(
    control: Control, principal: Principal, parent: LocationName, run: str, series: str
) -> dict[str, Any]:
    resource = _find(control, principal, "aiplatform.tensorboardTimeSeries.get", parent, run, f"timeSeries/{series}")
    name = _metric(series)
    points = progress.points(control.database, resource.project, resource.job_id, (name,))
    if name not in points:
        raise NotFound(f"Time series {resource.tensorboard_run}/timeSeries/{series} is not found.")
    return resources.time_series(resource, name, points[name])


def read_time_series(
    control: Control, principal: Principal, parent: LocationName, run: str, series: str
) -> dict[str, Any]:
    """Every point of one metric: `{"timeSeriesData": …}`."""
    resource = _find(control, principal, "aiplatform.tensorboardTimeSeries.read", parent, run, f"timeSeries/{series}")
    name = _metric(series)
    points = progress.points(control.database, resource.project, resource.job_id, (name,))
    return {"timeSeriesData": resources.data(name, points.get(name, []))}


def batch_read(control: Control, principal: Principal, parent: LocationName, names: list[str]) -> dict[str, Any]:
    """Every point of several metrics, by the full names of their time series: `{"timeSeriesData": [...]}`."""
    authorization.require(control.database, principal, "aiplatform.tensorboardTimeSeries.read", parent.project)
    answers = []
    for name in names:
        parts = name.split("/")
        if parts[-2:-1] != ["timeSeries"] or parts[-4:-3] != ["runs"]:
            raise NotFound(f"Time series {name} is not found.")
        answers.append(read_time_series(control, principal, parent, parts[-3], parts[-1])["timeSeriesData"])
    return {"timeSeriesData": answers}


def _experiments(
    control: Control, scope: tuple[str, str, str, str], page_size: int, page_token: str, named: Collection[str] = ()
) -> tuple[list[resources.Experiment], str]:
    """A page of a location's experiments, newest first, or of the named ones. `scope` identifies the list: kind,
    project, location and filter."""
    _, project, location, _ = scope
    query = (
        sa.select(experiment.c.id, tuning_job.c.resource)
        .join(tuning_job, sa.and_(tuning_job.c.project == experiment.c.project, tuning_job.c.id == experiment.c.job))
        .where(experiment.c.project == project, experiment.c.location == location)
    )
    if named:
        query = query.where(experiment.c.id.in_(named))
    with control.database.reading() as connection:
        rows, more = pages.requested(page_size, page_token, *scope).read(connection, query, experiment.c.id)
    return [resources.Experiment.of(project, location, row.id, row.resource) for row in rows], more


def _find(
    control: Control, principal: Principal, permission: str, parent: LocationName, context: str, requested: str
) -> resources.Experiment:
    """The experiment of `context`, by its own name or that of its run. Raises NotFound with the requested name."""
    project = authorization.require(control.database, principal, permission, parent.project).number
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
        resource = resources.Experiment.of(project, row.location, head, row.resource)
        if context in (resource.id, resource.run_id):
            return resource
    raise NotFound(f"{parent}/…/{requested} is not found.")


def _parents(tree: filters.Node | None) -> set[str]:
    """Experiments that a filter names as parents, so that only these are read."""
    if isinstance(tree, filters.AllOf):
        return {name for part in tree.parts for name in _parents(part)}
    if isinstance(tree, filters.Comparison) and tree.field in ("parent_contexts", "parentContexts"):
        return {tree.value.rpartition("/")[2]}
    return set()


def _meets(tree: filters.Node | None, resource: dict[str, Any], contexts: Collection[str] = ()) -> bool:
    """Whether a resource, as JSON, matches a filter. `contexts` are the ids for `in_context`."""

    def holds(node: filters.Comparison | filters.Call) -> bool:
        if isinstance(node, filters.Call):
            if node.function != "in_context":
                filters.fail(node.position, f'the function "{node.function}" is not known here')
            return any(name.rpartition("/")[2] in contexts for name in node.arguments)
        if node.field in ("parent_contexts", "parentContexts"):
            parent = node.value.rpartition("/")[2]
            return any(name.rpartition("/")[2] == parent for name in resource.get("parentContexts", ()))
        field = FILTERED.get(node.field, node.field)
        if field not in FILTERED.values():
            filters.unknown(node, (*FILTERED, "parent_contexts"))
        value = resource.get(field, "")
        return filters.text_holds(node, str(value).lower() if isinstance(value, bool) else str(value))

    return filters.matches(tree, holds)


def _metric(series: str) -> str:
    """A metric's name by the id of its time series; an unknown id gives a name without points."""
    return METRIC_NAMES[int(series) - 1] if series.isdigit() and 1 <= int(series[:9]) <= len(METRIC_NAMES) else ""
