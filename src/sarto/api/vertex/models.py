"""models: one short handler per verb. Ids may have `@version` or `@alias`."""

from __future__ import annotations

from pydantic import Field
from starlette.requests import Request

from sarto.api.http.requests import named, page, parent, query, read_message
from sarto.api.http.responses import Reply, listing, reply
from sarto.api.http.routing import LIST, LOCATION, MODEL, PAGE, Route
from sarto.api.http.services import in_control
from sarto.api.vertex.operations import answer
from sarto.control.exports import export_model
from sarto.control.models import registry
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
    return reply(await in_control(request, registry.get, named(request, MODELS, versioned=True)))


async def list_models(request: Request) -> Reply:
    location, chosen = parent(request, wildcard=True), query(request).get("filter", "")
    return listing(MODELS, await in_control(request, registry.list_models, location, *page(request), chosen))


async def list_versions(request: Request) -> Reply:
    name = named(request, MODELS, versioned=True)
    return listing(MODELS, await in_control(request, registry.list_versions, name, *page(request)))


async def list_checkpoints(request: Request) -> Reply:
    """The checkpoints of a version, at most ten, in one page."""
    page(request)
    model = await in_control(request, registry.get, named(request, MODELS, versioned=True))
    return listing("checkpoints", (model.get("checkpoints", []), ""))


async def update(request: Request) -> Reply:
    """Change the fields in the mask; without a mask, those in the body."""
    model = await read_message(request, Model, "model")
    name = named(request, MODELS, versioned=True)
    if model.name and model.name.rpartition("/")[2].partition("@")[0] != name.id:
        raise InvalidArgument.field("model.name", f'"{model.name}" is not the model of the URL, {name}.')
    mask = [to_snake(part.strip()) for part in query(request).get("update_mask", "").split(",") if part.strip()]
    return reply(await in_control(request, registry.update, name, model, mask))


async def merge_version_aliases(request: Request) -> Reply:
    body = await read_message(request, MergeVersionAliasesRequest)
    name = named(request, MODELS, versioned=True)
    return reply(await in_control(request, registry.merge_version_aliases, name, body.version_aliases))


async def export(request: Request) -> Reply:
    body = await read_message(request, ExportModelRequest)
    return answer(request, await in_control(request, export_model.export, named(request, MODELS, versioned=True), body))


async def delete(request: Request) -> Reply:
    return answer(request, await in_control(request, registry.delete, named(request, MODELS, versioned=True)))


async def delete_version(request: Request) -> Reply:
    return answer(request, await in_control(request, registry.delete_version, named(request, MODELS, versioned=True)))


ROUTES = [
    Route(
        "GET", f"{LOCATION}/models", list_models, "aiplatform.models.list", "List tuned models, newest first",
        response=ListModelsResponse, query=LIST,
    ),
    Route("GET", MODEL, get, "aiplatform.models.get", "Get a model, or a version after @", response=Model),
    Route(
        "PATCH", MODEL, update, "aiplatform.models.update",
        "Change display name, description, labels or default checkpoint", Model, Model, ("update_mask",),
    ),
    Route("DELETE", MODEL, delete, "aiplatform.models.delete", "Delete a model with its versions and endpoints"),
    Route(
        "GET", f"{MODEL}:listVersions", list_versions, "aiplatform.models.get", "List a model's versions",
        response=ListModelsResponse, query=LIST,
    ),
    Route(
        "GET", f"{MODEL}:listCheckpoints", list_checkpoints, "aiplatform.models.get",
        "List the checkpoints of a version", query=PAGE,
    ),
    Route("DELETE", f"{MODEL}:deleteVersion", delete_version, "aiplatform.models.delete", "Delete a version"),
    Route(
        "POST", f"{MODEL}:mergeVersionAliases", merge_version_aliases, "aiplatform.models.update",
        "Add aliases to a version, or remove them", MergeVersionAliasesRequest, Model,
    ),
    Route(
        "POST", f"{MODEL}:export", export, "aiplatform.models.export",
        "Write a model to a bucket: adapter, merged-safetensors, gguf-f16 or gguf-q8-0", ExportModelRequest,
    ),
]  # fmt: skip
