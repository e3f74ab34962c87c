"""Datasets before any job and of one: the report, and one row as training and serving see it. The worker answers."""

from __future__ import annotations

from starlette.requests import Request

from sarto.api.http import (
    Reply,
    in_control,
    named,
    parent,
    query,
    read_message,
    reply,
    resource_name,
    services,
    until_gone,
)
from sarto.control import dataset_checks
from sarto.control.dataset_checks import Asked, DatasetCheck
from sarto.errors import InvalidArgument
from sarto.names import parse_resource
from sarto.serving.generator import Target

REPORT, ROW = "data_report", "show_row"


async def check(request: Request) -> Reply:
    asked = await read_message(request, DatasetCheck)
    return await _ask(request, REPORT, await in_control(request, dataset_checks.question, parent(request), asked))


async def show(request: Request) -> Reply:
    asked = await read_message(request, DatasetCheck)
    return await _ask(request, ROW, await in_control(request, dataset_checks.question, parent(request), asked))


async def show_of_job(request: Request) -> Reply:
    """One row of the data a job learns from, `row` being its line."""
    text = query(request).get("row", "1")
    if not (text.isascii() and text.isdigit() and 0 < len(text) < 10 and int(text)):
        raise InvalidArgument.field("row", f'"{text}" is not a line; lines are counted from 1')
    name = named(request, "tuningJobs")
    return await _ask(request, ROW, await in_control(request, dataset_checks.job_question, name, int(text)))


async def report_of_job(request: Request) -> Reply:
    name = parse_resource(resource_name(request).removesuffix("/dataReport"), "tuningJobs")
    return reply(await in_control(request, dataset_checks.job_report, name))


async def _ask(request: Request, method: str, asked: Asked) -> Reply:
    """The answer of the worker, which goes on answering others meanwhile."""
    try:
        question = asked.question.model_dump(mode="json")
        return reply(
            await until_gone(request, services(request).generator.inspect(Target(asked.base), method, question))
        )
    finally:
        asked.close()
