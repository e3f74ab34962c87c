"""batchPredictionJobs: one short handler per verb."""

from __future__ import annotations

from starlette.requests import Request

from sarto.api.http.requests import named, page, parent, query, read_message
from sarto.api.http.responses import Reply, listing, reply
from sarto.api.http.routing import LIST, LOCATION, Route
from sarto.api.http.services import in_control
from sarto.api.vertex.operations import CancelRequest, answer
from sarto.control.batches import batch_predictions
from sarto.control.batches.batch_predictions import JOBS, ROOT
from sarto.schema.batch_predictions import BatchPredictionJob, ListBatchPredictionJobsResponse


async def create(request: Request) -> Reply:
    job = await read_message(request, BatchPredictionJob, ROOT)
    return reply(await in_control(request, batch_predictions.create, parent(request), job))


async def get(request: Request) -> Reply:
    return reply(await in_control(request, batch_predictions.get, named(request, JOBS)))


async def list_jobs(request: Request) -> Reply:
    location, chosen = parent(request, wildcard=True), query(request).get("filter", "")
    return listing(JOBS, await in_control(request, batch_predictions.list_jobs, location, *page(request), chosen))


async def cancel(request: Request) -> Reply:
    await read_message(request, CancelRequest)
    await in_control(request, batch_predictions.cancel, named(request, JOBS))
    return reply({})


async def delete(request: Request) -> Reply:
    return answer(request, await in_control(request, batch_predictions.delete, named(request, JOBS)))


BATCH = f"{LOCATION}/batchPredictionJobs/{{job}}"
ROUTES = [
    Route(
        "POST", f"{LOCATION}/batchPredictionJobs", create,
        "aiplatform.batchPredictionJobs.create", "Create a batch prediction job",
        BatchPredictionJob, BatchPredictionJob,
    ),
    Route(
        "GET", f"{LOCATION}/batchPredictionJobs", list_jobs, "aiplatform.batchPredictionJobs.list",
        "List batch prediction jobs, newest first", response=ListBatchPredictionJobsResponse, query=LIST,
    ),
    Route(
        "GET", BATCH, get, "aiplatform.batchPredictionJobs.get", "Get a batch prediction job",
        response=BatchPredictionJob,
    ),
    Route(
        "DELETE", BATCH, delete, "aiplatform.batchPredictionJobs.delete",
        "Delete the record of an ended batch prediction job",
    ),
    Route(
        "POST", f"{BATCH}:cancel", cancel, "aiplatform.batchPredictionJobs.cancel",
        "Cancel a batch prediction job", {"type": "object"},
    ),
]  # fmt: skip
