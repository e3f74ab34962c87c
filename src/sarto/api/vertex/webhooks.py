"""webhooks: URLs that receive new states of tuning jobs."""

from __future__ import annotations

from starlette.requests import Request

from sarto.api.http.requests import named, page, parent, read_message, resource_name
from sarto.api.http.responses import Reply, listing, reply
from sarto.api.http.routing import LOCATION, PAGE, Route
from sarto.api.http.services import in_control
from sarto.control.webhooks import subscriptions
from sarto.errors import InvalidArgument
from sarto.names import parse_resource
from sarto.schema.wire import Message, Text

WEBHOOKS = "webhooks"


class WebhookMessage(Message):
    """A webhook; only `uri` and `displayName` are read, and `secret` is returned only by create."""

    name: Text = ""
    display_name: Text = ""
    uri: Text = ""
    secret: Text = ""
    create_time: Text = ""


async def create(request: Request) -> Reply:
    body = await read_message(request, WebhookMessage, "webhook")
    if not body.uri:
        raise InvalidArgument.field("webhook.uri", "Required: the https URL to call.")
    return reply(await in_control(request, subscriptions.create, parent(request), body.uri, body.display_name))


async def get(request: Request) -> Reply:
    return reply(await in_control(request, subscriptions.get, named(request, WEBHOOKS)))


async def list_webhooks(request: Request) -> Reply:
    return listing(
        WEBHOOKS,
        await in_control(request, subscriptions.list_subscriptions, parent(request, wildcard=True), *page(request)),
    )


async def delete(request: Request) -> Reply:
    await in_control(request, subscriptions.delete, named(request, WEBHOOKS))
    return reply({})


async def list_deliveries(request: Request) -> Reply:
    name = parse_resource(resource_name(request).removesuffix("/deliveries"), WEBHOOKS)
    return listing("deliveries", await in_control(request, subscriptions.deliveries, name, *page(request)))


WEBHOOK = f"{LOCATION}/webhooks/{{webhook}}"
ROUTES = [
    Route(
        "POST", f"{LOCATION}/webhooks", create, "aiplatform.webhooks.create",
        "Create a webhook for new states of tuning jobs; only this response has the secret",
        WebhookMessage, WebhookMessage,
    ),
    Route(
        "GET", f"{LOCATION}/webhooks", list_webhooks, "aiplatform.webhooks.list",
        "List webhooks, oldest first", query=PAGE,
    ),
    Route(
        "GET", WEBHOOK, get, "aiplatform.webhooks.get", "Get a webhook", response=WebhookMessage
    ),
    Route("DELETE", WEBHOOK, delete, "aiplatform.webhooks.delete", "Delete a webhook"),
    Route(
        "GET", f"{WEBHOOK}/deliveries", list_deliveries, "aiplatform.webhooks.get",
        "List the messages of a webhook, newest first", query=PAGE,
    ),
]  # fmt: skip
