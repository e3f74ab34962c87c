"""What a job's experiment shows: metadata contexts and artifacts, TensorBoard runs and time series. Reads only."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qsl

from starlette.requests import Request

from sarto.api.http import Reply, in_control, listing, page, parent, query, reply, resource_name
from sarto.control import experiments
from sarto.errors import NotFound

STORE = "default"


async def get_store(request: Request) -> Reply:
    """The one metadata store; it has no settings."""
    _check_store(request)
    return reply(_store(resource_name(request)))


async def list_stores(request: Request) -> Reply:
    page(request)
    place = parent(request)
    return listing("metadataStores", ([_store(f"{place}/metadataStores/{STORE}")], ""))


async def get_context(request: Request) -> Reply:
    _check_store(request)
    return reply(await in_control(request, experiments.get_context, parent(request), request.path_params["context"]))


async def list_contexts(request: Request) -> Reply:
    _check_store(request)
    chosen = query(request).get("filter", "")
    found = await in_control(request, experiments.list_contexts, parent(request), *page(request), chosen)
    return listing("contexts", found)


async def list_executions(request: Request) -> Reply:
    _check_store(request)
    page(request)
    chosen = query(request).get("filter", "")
    return listing("executions", await in_control(request, experiments.list_executions, parent(request), chosen))


async def list_artifacts(request: Request) -> Reply:
    _check_store(request)
    chosen = query(request).get("filter", "")
    found = await in_control(request, experiments.list_artifacts, parent(request), *page(request), chosen)
    return listing("artifacts", found)


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
    found = await in_control(request, experiments.list_tensorboard_experiments, parent(request), *page(request), chosen)
    return listing("tensorboardExperiments", found)


async def get_experiment(request: Request) -> Reply:
    await _board(request)
    experiment = request.path_params["experiment"]
    return reply(await in_control(request, experiments.get_tensorboard_experiment, parent(request), experiment))


async def list_runs(request: Request) -> Reply:
    await _board(request)
    page(request)
    chosen, experiment = query(request).get("filter", ""), request.path_params["experiment"]
    found = await in_control(request, experiments.list_tensorboard_runs, parent(request), experiment, chosen)
    return listing("tensorboardRuns", found)


async def get_run(request: Request) -> Reply:
    await _board(request)
    run = request.path_params["run"]
    return reply(await in_control(request, experiments.get_tensorboard_run, parent(request), run))


async def list_time_series(request: Request) -> Reply:
    await _board(request)
    page(request)
    chosen, run = query(request).get("filter", ""), request.path_params["run"]
    found = await in_control(request, experiments.list_time_series, parent(request), run, chosen)
    return listing("tensorboardTimeSeries", found)


async def get_time_series(request: Request) -> Reply:
    await _board(request)
    values = request.path_params
    found = await in_control(request, experiments.get_time_series, parent(request), values["run"], values["series"])
    return reply(found)


async def read_time_series(request: Request) -> Reply:
    await _board(request)
    values = request.path_params
    found = await in_control(request, experiments.read_time_series, parent(request), values["run"], values["series"])
    return reply(found)


async def batch_read(request: Request) -> Reply:
    """Several time series at once; their names stand in repeated `timeSeries` parameters."""
    await _board(request)
    pairs = parse_qsl(request.scope["query_string"].decode("latin-1"))
    names = [value for name, value in pairs if name in ("timeSeries", "time_series")]
    return reply(await in_control(request, experiments.batch_read, parent(request), names))


async def _board(request: Request) -> None:
    """The TensorBoard of the path must be the project's own. Raises NotFound."""
    await in_control(request, experiments.get_tensorboard, parent(request), request.path_params["tensorboard"])


def _store(name: str) -> dict[str, Any]:
    return {"name": name, "description": "Tuning experiments", "state": {}}


def _check_store(request: Request) -> None:
    if request.path_params["store"] != STORE:
        raise NotFound(f"MetadataStore {request.path_params['store']} is not found; there is {STORE}.")
