"""batchPredictionJobs: one short handler per verb."""

from __future__ import annotations

from starlette.requests import Request

from sarto.api.http import Reply, in_control, listing, named, page, parent, query, read_message, reply
from sarto.api.operations import CancelRequest, answer
from sarto.control import batch_predictions
from sarto.control.batch_predictions import JOBS, ROOT
from sarto.schema.batch_predictions import BatchPredictionJob


async def create(request: Request) -> Reply:
    job = await read_message(request, BatchPredictionJob, ROOT)
    return reply(await in_control(request, batch_predictions.create, parent(request), job))


async def get(request: Request) -> Reply:
    return reply(await in_control(request, batch_predictions.get, named(request, JOBS)))


async def list_(request: Request) -> Reply:
    place, chosen = parent(request, wildcard=True), query(request).get("filter", "")
    return listing(JOBS, await in_control(request, batch_predictions.list_, place, *page(request), chosen))


async def cancel(request: Request) -> Reply:
    await read_message(request, CancelRequest)
    await in_control(request, batch_predictions.cancel, named(request, JOBS))
    return reply({})


async def delete(request: Request) -> Reply:
    return answer(request, await in_control(request, batch_predictions.delete, named(request, JOBS)))
