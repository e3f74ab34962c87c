"""models: one short handler per verb. Ids may carry `@version` or `@alias`."""

from __future__ import annotations

from pydantic import Field
from starlette.requests import Request

from sarto.api.http import Reply, in_control, listing, named, page, parent, query, read_message, reply
from sarto.api.operations import answer
from sarto.control import exports, models
from sarto.errors import InvalidArgument
from sarto.schema.models import ExportModelRequest, Model
from sarto.schema.wire import Message, Text, to_snake

MODELS = "models"


class MergeVersionAliasesRequest(Message):
    version_aliases: list[Text] = Field(default_factory=list)


class ListModelsResponse(Message):
    models: list[Model] = Field(default_factory=list)
    next_page_token: Text = ""


async def get(request: Request) -> Reply:
    return reply(await in_control(request, models.get, named(request, MODELS, versioned=True)))


async def list_(request: Request) -> Reply:
    place, chosen = parent(request, wildcard=True), query(request).get("filter", "")
    return listing(MODELS, await in_control(request, models.list_, place, *page(request), chosen))


async def list_versions(request: Request) -> Reply:
    name = named(request, MODELS, versioned=True)
    return listing(MODELS, await in_control(request, models.list_versions, name, *page(request)))


async def list_checkpoints(request: Request) -> Reply:
    """A version has at most ten; one page holds them."""
    page(request)
    found = await in_control(request, models.get, named(request, MODELS, versioned=True))
    return listing("checkpoints", (found.get("checkpoints", []), ""))


async def update(request: Request) -> Reply:
    """Changes what the mask names; without a mask, what the body has."""
    given = await read_message(request, Model, "model")
    name = named(request, MODELS, versioned=True)
    if given.name and given.name.rpartition("/")[2].partition("@")[0] != name.id:
        raise InvalidArgument.field("model.name", f'"{given.name}" is not the model of the URL, {name}.')
    mask = [to_snake(part.strip()) for part in query(request).get("update_mask", "").split(",") if part.strip()]
    return reply(await in_control(request, models.update, name, given, mask))


async def merge_version_aliases(request: Request) -> Reply:
    asked = await read_message(request, MergeVersionAliasesRequest)
    name = named(request, MODELS, versioned=True)
    return reply(await in_control(request, models.merge_version_aliases, name, asked.version_aliases))


async def export(request: Request) -> Reply:
    asked = await read_message(request, ExportModelRequest)
    return answer(request, await in_control(request, exports.export, named(request, MODELS, versioned=True), asked))


async def delete(request: Request) -> Reply:
    return answer(request, await in_control(request, models.delete, named(request, MODELS, versioned=True)))


async def delete_version(request: Request) -> Reply:
    return answer(request, await in_control(request, models.delete_version, named(request, MODELS, versioned=True)))
