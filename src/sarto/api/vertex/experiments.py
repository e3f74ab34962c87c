"""A job's experiment, read only: metadata contexts and artifacts, TensorBoard runs and time series."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qsl

from starlette.requests import Request

from sarto.api.http.requests import page, parent, query, resource_name
from sarto.api.http.responses import Reply, listing, reply
from sarto.api.http.routing import LIST, LOCATION, PAGE, SIGNED_IN, Route
from sarto.api.http.services import in_control
from sarto.control.experiments import experiments
from sarto.errors import NotFound

DEFAULT_STORE = "default"


async def get_store(request: Request) -> Reply:
    """The single metadata store; it has no settings."""
    _check_store(request)
    return reply(_store(resource_name(request)))


async def list_stores(request: Request) -> Reply:
    page(request)
    location = parent(request)
    return listing("metadataStores", ([_store(f"{location}/metadataStores/{DEFAULT_STORE}")], ""))


async def get_context(request: Request) -> Reply:
    _check_store(request)
    return reply(await in_control(request, experiments.get_context, parent(request), request.path_params["context"]))


async def list_contexts(request: Request) -> Reply:
    _check_store(request)
    chosen = query(request).get("filter", "")
    contexts = await in_control(request, experiments.list_contexts, parent(request), *page(request), chosen)
    return listing("contexts", contexts)


async def list_executions(request: Request) -> Reply:
    _check_store(request)
    page(request)
    chosen = query(request).get("filter", "")
    return listing("executions", await in_control(request, experiments.list_executions, parent(request), chosen))


async def list_artifacts(request: Request) -> Reply:
    _check_store(request)
    chosen = query(request).get("filter", "")
    artifacts = await in_control(request, experiments.list_artifacts, parent(request), *page(request), chosen)
    return listing("artifacts", artifacts)


async def get_artifact(request: Request) -> Reply:
    _check_store(request)
    return reply(await in_control(request, experiments.get_artifact, parent(request), request.path_params["artifact"]))


async def list_tensorboards(request: Request) -> Reply:
    page(request)
    chosen = query(request).get("filter", "")
    return listing("tensorboards", await in_control(request, experiments.list_tensorboards, parent(request), chosen))


async def get_tensorboard(request: Request) -> Reply:
    board = request.path_params["tensorboard"]
    return reply(await in_control(request, experiments.get_tensorboard, parent(request), board))


async def list_tensorboard_experiments(request: Request) -> Reply:
    await _board(request)
    chosen = query(request).get("filter", "")
    resources = await in_control(
        request, experiments.list_tensorboard_experiments, parent(request), *page(request), chosen
    )
    return listing("tensorboardExperiments", resources)


async def get_experiment(request: Request) -> Reply:
    await _board(request)
    experiment = request.path_params["experiment"]
    return reply(await in_control(request, experiments.get_tensorboard_experiment, parent(request), experiment))


async def list_runs(request: Request) -> Reply:
    await _board(request)
    page(request)
    chosen, experiment = query(request).get("filter", ""), request.path_params["experiment"]
    runs = await in_control(request, experiments.list_tensorboard_runs, parent(request), experiment, chosen)
    return listing("tensorboardRuns", runs)


async def get_run(request: Request) -> Reply:
    await _board(request)
    run = request.path_params["run"]
    return reply(await in_control(request, experiments.get_tensorboard_run, parent(request), run))


async def list_time_series(request: Request) -> Reply:
    await _board(request)
    page(request)
    chosen, run = query(request).get("filter", ""), request.path_params["run"]
    series = await in_control(request, experiments.list_time_series, parent(request), run, chosen)
    return listing("tensorboardTimeSeries", series)


async def get_time_series(request: Request) -> Reply:
    await _board(request)
    values = request.path_params
    series = await in_control(request, experiments.get_time_series, parent(request), values["run"], values["series"])
    return reply(series)


async def read_time_series(request: Request) -> Reply:
    await _board(request)
    values = request.path_params
    series = await in_control(request, experiments.read_time_series, parent(request), values["run"], values["series"])
    return reply(series)


async def batch_read(request: Request) -> Reply:
    """Several time series at once, named by repeated `timeSeries` parameters."""
    await _board(request)
    pairs = parse_qsl(request.scope["query_string"].decode("latin-1"))
    names = [value for name, value in pairs if name in ("timeSeries", "time_series")]
    return reply(await in_control(request, experiments.batch_read, parent(request), names))


async def _board(request: Request) -> None:
    """Check that the TensorBoard of the path is the project's own. Raises NotFound."""
    await in_control(request, experiments.get_tensorboard, parent(request), request.path_params["tensorboard"])


def _store(name: str) -> dict[str, Any]:
    return {"name": name, "description": "Tuning experiments", "state": {}}


def _check_store(request: Request) -> None:
    if request.path_params["store"] != DEFAULT_STORE:
        raise NotFound(f"MetadataStore {request.path_params['store']} is not found; there is {DEFAULT_STORE}.")


STORE = f"{LOCATION}/metadataStores/{{store}}"
BOARD = f"{LOCATION}/tensorboards/{{tensorboard}}"
RUN = f"{BOARD}/experiments/{{experiment}}/runs/{{run}}"
ROUTES = [
    Route(
        "GET", f"{LOCATION}/metadataStores", list_stores, SIGNED_IN, "List metadata stores: there is one",
        query=PAGE,
    ),
    Route("GET", STORE, get_store, SIGNED_IN, "Get the metadata store"),
    Route(
        "GET", f"{STORE}/contexts", list_contexts, "aiplatform.contexts.list",
        "List experiments and their runs", query=LIST,
    ),
    Route(
        "GET", f"{STORE}/contexts/{{context}}", get_context, "aiplatform.contexts.get",
        "Get an experiment or its run",
    ),
    Route(
        "GET", f"{STORE}/executions", list_executions, "aiplatform.executions.list", "List executions",
        query=LIST,
    ),
    Route(
        "GET", f"{STORE}/artifacts", list_artifacts, "aiplatform.artifacts.list",
        "List the artifacts that link to TensorBoard runs", query=LIST,
    ),
    Route(
        "GET", f"{STORE}/artifacts/{{artifact}}", get_artifact, "aiplatform.artifacts.get",
        "Get the artifact that links to a TensorBoard run",
    ),
    Route(
        "GET", f"{LOCATION}/tensorboards", list_tensorboards, "aiplatform.tensorboards.list",
        "List TensorBoards: a project has one", query=LIST,
    ),
    Route("GET", BOARD, get_tensorboard, "aiplatform.tensorboards.get", "Get the project's TensorBoard"),
    Route(
        "GET", f"{BOARD}:batchRead", batch_read, "aiplatform.tensorboardTimeSeries.read",
        "Read several time series", query=("time_series",),
    ),
    Route(
        "GET", f"{BOARD}/experiments", list_tensorboard_experiments,
        "aiplatform.tensorboardExperiments.list", "List TensorBoard experiments, newest first", query=LIST,
    ),
    Route(
        "GET", f"{BOARD}/experiments/{{experiment}}", get_experiment,
        "aiplatform.tensorboardExperiments.get", "Get a TensorBoard experiment",
    ),
    Route(
        "GET", f"{BOARD}/experiments/{{experiment}}/runs", list_runs, "aiplatform.tensorboardRuns.list",
        "List the runs of an experiment: it has one", query=LIST,
    ),
    Route("GET", RUN, get_run, "aiplatform.tensorboardRuns.get", "Get a TensorBoard run"),
    Route(
        "GET", f"{RUN}/timeSeries", list_time_series, "aiplatform.tensorboardTimeSeries.list",
        "List the metrics of a run", query=LIST,
    ),
    Route(
        "GET", f"{RUN}/timeSeries/{{series}}", get_time_series, "aiplatform.tensorboardTimeSeries.get",
        "Get a metric of a run",
    ),
    Route(
        "GET", f"{RUN}/timeSeries/{{series}}:read", read_time_series,
        "aiplatform.tensorboardTimeSeries.read", "Every point of a metric", query=("max_data_points", "filter"),
    ),
]  # fmt: skip
