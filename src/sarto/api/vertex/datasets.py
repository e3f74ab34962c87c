"""Dataset methods: the data report, and one row as training and serving render it. A worker process computes both."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from starlette.requests import Request

from sarto.api.http.requests import named, parent, query, read_message, resource_name, until_gone
from sarto.api.http.responses import Reply, reply
from sarto.api.http.routing import JOB, LOCATION, Route
from sarto.api.http.services import in_control, services
from sarto.contract.dataset_query import DatasetQuery
from sarto.control import dataset_queries
from sarto.control.dataset_queries import DatasetCheck, WorkerQuery
from sarto.errors import InvalidArgument
from sarto.names import parse_resource
from sarto.serving.generator import Target

Answer = Callable[[Target, DatasetQuery], Awaitable[dict[str, Any]]]


async def check(request: Request) -> Reply:
    body = await read_message(request, DatasetCheck)
    query = await in_control(request, dataset_queries.question, parent(request), body)
    return await _ask(request, services(request).generator.data_report, query)


async def show(request: Request) -> Reply:
    body = await read_message(request, DatasetCheck)
    query = await in_control(request, dataset_queries.question, parent(request), body)
    return await _ask(request, services(request).generator.show_row, query)


async def show_of_job(request: Request) -> Reply:
    """One row of a job's data; `row` is its line."""
    text = query(request).get("row", "1")
    if not (text.isascii() and text.isdigit() and 0 < len(text) < 10 and int(text)):
        raise InvalidArgument.field("row", f'"{text}" is not a line; lines are counted from 1.')
    name = named(request, "tuningJobs")
    row_query = await in_control(request, dataset_queries.job_question, name, int(text))
    return await _ask(request, services(request).generator.show_row, row_query)


async def report_of_job(request: Request) -> Reply:
    name = parse_resource(resource_name(request).removesuffix("/dataReport"), "tuningJobs")
    return reply(await in_control(request, dataset_queries.job_report, name))


async def _ask(request: Request, answer: Answer, query: WorkerQuery) -> Reply:
    """The result of a process that is killed when the client disconnects."""
    try:
        target = Target(query.base, tenant=query.project)
        return reply(await until_gone(request, answer(target, query.question)))
    finally:
        query.close()


ROUTES = [
    Route(
        "POST", f"{LOCATION}:checkDataset", check, "aiplatform.tuningJobs.create",
        "Report on a dataset without tuning on it", DatasetCheck,
    ),
    Route(
        "POST", f"{LOCATION}:showExample", show, "aiplatform.tuningJobs.create",
        "Show a row of a dataset as training and serving render it", DatasetCheck,
    ),
    Route(
        "GET", f"{JOB}/dataReport", report_of_job, "aiplatform.tuningJobs.get",
        "Get the report on a job's data, once its run has read it",
    ),
    Route(
        "GET", f"{JOB}:showExample", show_of_job, "aiplatform.tuningJobs.get",
        "Show a row of a job's data as training and serving render it", query=("row",),
    ),
]  # fmt: skip
