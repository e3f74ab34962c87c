"""webhooks: who is told of new states of tuning jobs."""

from __future__ import annotations

from starlette.requests import Request

from sarto.api.http import Reply, in_control, listing, named, page, parent, read_message, reply, resource_name
from sarto.control import webhooks
from sarto.errors import InvalidArgument
from sarto.names import parse_resource
from sarto.schema.wire import Message, Text

WEBHOOKS = "webhooks"


class WebhookMessage(Message):
    """A webhook; only `uri` and `displayName` are read, and `secret` is answered once, when it is made."""

    name: Text = ""
    display_name: Text = ""
    uri: Text = ""
    secret: Text = ""
    create_time: Text = ""


async def create(request: Request) -> Reply:
    asked = await read_message(request, WebhookMessage, "webhook")
    if not asked.uri:
        raise InvalidArgument.field("webhook.uri", "Required: the https URL to call.")
    return reply(await in_control(request, webhooks.create, parent(request), asked.uri, asked.display_name))


async def get(request: Request) -> Reply:
    return reply(await in_control(request, webhooks.get, named(request, WEBHOOKS)))


async def list_(request: Request) -> Reply:
    return listing(WEBHOOKS, await in_control(request, webhooks.list_, parent(request, wildcard=True), *page(request)))


async def delete(request: Request) -> Reply:
    await in_control(request, webhooks.delete, named(request, WEBHOOKS))
    return reply({})


async def list_deliveries(request: Request) -> Reply:
    name = parse_resource(resource_name(request).removesuffix("/deliveries"), WEBHOOKS)
    return listing("deliveries", await in_control(request, webhooks.deliveries, name, *page(request)))
