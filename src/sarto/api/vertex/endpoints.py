"""endpoints: one short handler per verb. Generation on an endpoint is in `generation`."""

from __future__ import annotations

from pydantic import Field
from starlette.requests import Request

from sarto.api.http.requests import named, page, parent, query, read_message
from sarto.api.http.responses import Reply, listing, reply
from sarto.api.http.routing import ENDPOINT, LIST, LOCATION, Route
from sarto.api.http.services import in_control
from sarto.api.vertex.operations import answer
from sarto.control.models import endpoints
from sarto.errors import InvalidArgument, Unimplemented
from sarto.names import parse_resource
from sarto.schema.models import DeployedModel, Endpoint
from sarto.schema.wire import Boolean, Message, Struct, Text, to_snake

ENDPOINTS = "endpoints"


class UndeployModelRequest(Message):
    deployed_model_id: Text = ""
    traffic_split: dict[str, int] = Field(default_factory=dict)


class DeployedModelInput(DeployedModel):
    """Fields of a request; the last ones are refused by name."""

    dedicated_resources: Struct | None = None
    automatic_resources: Struct | None = None
    shared_resources: Text = ""
    explanation_spec: Struct | None = None
    service_account: Text = ""
    enable_access_logging: Boolean | None = None
    disable_container_logging: Boolean | None = None
    disable_explanations: Boolean | None = None


REFUSED = frozenset(DeployedModelInput.model_fields) - frozenset(DeployedModel.model_fields)


class DeployModelRequest(Message):
    deployed_model: DeployedModelInput | None = None
    traffic_split: dict[str, int] = Field(default_factory=dict)


class ListEndpointsResponse(Message):
    endpoints: list[Endpoint] = Field(default_factory=list)
    next_page_token: Text = ""


async def get(request: Request) -> Reply:
    return reply(await in_control(request, endpoints.get, named(request, ENDPOINTS)))


async def list_endpoints(request: Request) -> Reply:
    location, chosen = parent(request, wildcard=True), query(request).get("filter", "")
    return listing(ENDPOINTS, await in_control(request, endpoints.list_endpoints, location, *page(request), chosen))


async def create(request: Request) -> Reply:
    endpoint = await read_message(request, Endpoint, "endpoint")
    if query(request).get("endpoint_id"):
        raise InvalidArgument.field("endpoint_id", "The service sets the ids of endpoints; leave it out.")
    return answer(request, await in_control(request, endpoints.create, parent(request), endpoint))


async def update(request: Request) -> Reply:
    endpoint = await read_message(request, Endpoint, "endpoint")
    mask = frozenset(
        to_snake(part.strip()) for part in query(request).get("update_mask", "").split(",") if part.strip()
    )
    return reply(await in_control(request, endpoints.update, named(request, ENDPOINTS), endpoint, mask))


async def deploy_model(request: Request) -> Reply:
    """Deploy a model. It gets all requests of the endpoint: a traffic split must state that or be absent."""
    body = await read_message(request, DeployModelRequest)
    deployed = body.deployed_model
    if deployed is None or not deployed.model:
        raise InvalidArgument.field("deployed_model.model", "Required field is not set.")
    if refused := sorted(name for name in REFUSED & deployed.model_fields_set if getattr(deployed, name)):
        raise Unimplemented(f"Not supported on this server: {', '.join(f'deployed_model.{name}' for name in refused)}.")
    name = named(request, ENDPOINTS)
    if body.traffic_split not in ({}, {"0": 100}, {name.id: 100}):
        raise Unimplemented("traffic_split: an endpoint has one model, which gets all requests; leave it out.")
    source = parse_resource(deployed.model, "models", versioned=True)
    return answer(request, await in_control(request, endpoints.deploy, name, source, deployed.checkpoint_id))


async def undeploy_model(request: Request) -> Reply:
    body = await read_message(request, UndeployModelRequest)
    return answer(
        request, await in_control(request, endpoints.undeploy, named(request, ENDPOINTS), body.deployed_model_id)
    )


async def delete(request: Request) -> Reply:
    return answer(request, await in_control(request, endpoints.delete, named(request, ENDPOINTS)))


ROUTES = [
    Route(
        "GET", f"{LOCATION}/endpoints", list_endpoints, "aiplatform.endpoints.list",
        "List endpoints, newest first", response=ListEndpointsResponse, query=LIST,
    ),
    Route(
        "POST", f"{LOCATION}/endpoints", create, "aiplatform.endpoints.create",
        "Create an endpoint without a deployed model", Endpoint, query=("endpoint_id",),
    ),
    Route(
        "PATCH", ENDPOINT, update, "aiplatform.endpoints.update",
        "Change display name, description or labels", Endpoint, Endpoint, ("update_mask",),
    ),
    Route(
        "POST", f"{ENDPOINT}:deployModel", deploy_model, "aiplatform.endpoints.deploy",
        "Deploy a tuned model on an empty endpoint, at one of its checkpoints", DeployModelRequest,
    ),
    Route("GET", ENDPOINT, get, "aiplatform.endpoints.get", "Get an endpoint", response=Endpoint),
    Route(
        "DELETE", ENDPOINT, delete, "aiplatform.endpoints.delete",
        "Delete an endpoint without a deployed model",
    ),
    Route(
        "POST", f"{ENDPOINT}:undeployModel", undeploy_model, "aiplatform.endpoints.undeploy",
        "Undeploy the model of an endpoint", UndeployModelRequest,
    ),
]  # fmt: skip
