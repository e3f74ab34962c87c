"""Datasets before any job: the report, and one row as training and serving see it. The worker answers."""

from __future__ import annotations

from starlette.requests import Request

from sarto.api.http import Reply, in_control, parent, read_message, reply, services, until_gone
from sarto.control.dataset_checks import DatasetCheck, question
from sarto.serving.generator import Target


async def check(request: Request) -> Reply:
    return await _ask(request, "data_report")


async def show(request: Request) -> Reply:
    return await _ask(request, "show_row")


async def _ask(request: Request, method: str) -> Reply:
    asked = await read_message(request, DatasetCheck)
    weights, wanted = await in_control(request, question, parent(request), asked)
    served = services(request)
    target = Target(served.catalog.base(served.catalog.weights[weights]))
    answer = served.generator.inspect(target, method, wanted.model_dump(mode="json"))
    return reply(await until_gone(request, answer))
