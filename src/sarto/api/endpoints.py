"""endpoints: one short handler per verb. What they answer with is in `generation`."""

from __future__ import annotations

from pydantic import Field
from starlette.requests import Request

from sarto.api.http import Reply, in_control, listing, named, page, parent, query, read_message, reply
from sarto.api.operations import answer
from sarto.control import endpoints
from sarto.errors import InvalidArgument, Unimplemented
from sarto.names import parse_resource
from sarto.schema.models import DeployedModel, Endpoint
from sarto.schema.wire import Boolean, Message, Struct, Text, to_snake

ENDPOINTS = "endpoints"


class UndeployModelRequest(Message):
    deployed_model_id: Text = ""
    traffic_split: dict[str, int] = Field(default_factory=dict)


class GivenDeployedModel(DeployedModel):
    """What a request may say; the last fields are refused by name."""

    dedicated_resources: Struct | None = None
    automatic_resources: Struct | None = None
    shared_resources: Text = ""
    explanation_spec: Struct | None = None
    service_account: Text = ""
    enable_access_logging: Boolean | None = None
    disable_container_logging: Boolean | None = None
    disable_explanations: Boolean | None = None


REFUSED = frozenset(GivenDeployedModel.model_fields) - frozenset(DeployedModel.model_fields)


class DeployModelRequest(Message):
    deployed_model: GivenDeployedModel | None = None
    traffic_split: dict[str, int] = Field(default_factory=dict)


class ListEndpointsResponse(Message):
    endpoints: list[Endpoint] = Field(default_factory=list)
    next_page_token: Text = ""


async def get(request: Request) -> Reply:
    return reply(await in_control(request, endpoints.get, named(request, ENDPOINTS)))


async def list_(request: Request) -> Reply:
    place, chosen = parent(request, wildcard=True), query(request).get("filter", "")
    return listing(ENDPOINTS, await in_control(request, endpoints.list_, place, *page(request), chosen))


async def create(request: Request) -> Reply:
    given = await read_message(request, Endpoint, "endpoint")
    if query(request).get("endpoint_id"):
        raise InvalidArgument.field("endpoint_id", "Endpoints are given their ids here; leave it out.")
    return answer(request, await in_control(request, endpoints.create, parent(request), given))


async def update(request: Request) -> Reply:
    given = await read_message(request, Endpoint, "endpoint")
    mask = frozenset(
        to_snake(part.strip()) for part in query(request).get("update_mask", "").split(",") if part.strip()
    )
    return reply(await in_control(request, endpoints.update, named(request, ENDPOINTS), given, mask))


async def deploy_model(request: Request) -> Reply:
    """One model answers all requests of an endpoint: a traffic split says so, or is left out."""
    asked = await read_message(request, DeployModelRequest)
    given = asked.deployed_model
    if given is None or not given.model:
        raise InvalidArgument.field("deployed_model.model", "Required field is not set.")
    if refused := sorted(name for name in REFUSED & given.model_fields_set if getattr(given, name)):
        raise Unimplemented(f"Not supported on this server: {', '.join(f'deployed_model.{name}' for name in refused)}.")
    name = named(request, ENDPOINTS)
    if asked.traffic_split not in ({}, {"0": 100}, {name.id: 100}):
        raise Unimplemented("traffic_split: an endpoint holds one model, which answers everything; leave it out.")
    source = parse_resource(given.model, "models", versioned=True)
    return answer(request, await in_control(request, endpoints.deploy, name, source, given.checkpoint_id))


async def undeploy_model(request: Request) -> Reply:
    asked = await read_message(request, UndeployModelRequest)
    return answer(
        request, await in_control(request, endpoints.undeploy, named(request, ENDPOINTS), asked.deployed_model_id)
    )


async def delete(request: Request) -> Reply:
    return answer(request, await in_control(request, endpoints.delete, named(request, ENDPOINTS)))
