"""endpoints: one short handler per verb. What they answer with is in `generation`."""

from __future__ import annotations

from pydantic import Field
from starlette.requests import Request

from sarto.api.http import Reply, in_control, listing, named, page, parent, query, read_message, reply
from sarto.api.operations import answer
from sarto.control import endpoints
from sarto.schema.models import Endpoint
from sarto.schema.wire import Message, Text

ENDPOINTS = "endpoints"


class UndeployModelRequest(Message):
    deployed_model_id: Text = ""
    traffic_split: dict[str, int] = Field(default_factory=dict)


class ListEndpointsResponse(Message):
    endpoints: list[Endpoint] = Field(default_factory=list)
    next_page_token: Text = ""


async def get(request: Request) -> Reply:
    return reply(await in_control(request, endpoints.get, named(request, ENDPOINTS)))


async def list_(request: Request) -> Reply:
    place, chosen = parent(request, wildcard=True), query(request).get("filter", "")
    return listing(ENDPOINTS, await in_control(request, endpoints.list_, place, *page(request), chosen))


async def undeploy_model(request: Request) -> Reply:
    asked = await read_message(request, UndeployModelRequest)
    return answer(
        request, await in_control(request, endpoints.undeploy, named(request, ENDPOINTS), asked.deployed_model_id)
    )


async def delete(request: Request) -> Reply:
    return answer(request, await in_control(request, endpoints.delete, named(request, ENDPOINTS)))
