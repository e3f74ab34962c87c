"""OpenAI's chat completions and list of models, at the paths that OpenAI clients use.

`…/endpoints/openapi` and `/openai/v1` take the model's name from the body, `…/endpoints/ID` from the path.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

import orjson
from starlette.requests import Request
from starlette.types import ASGIApp

from sarto.api.http.requests import parent, read_json, until_gone
from sarto.api.http.responses import Reply, reply
from sarto.api.http.routing import ENDPOINT, LOCATION, PROMPT_BYTES, SIGNED_IN, Route
from sarto.api.http.services import in_control, in_thread, principal, services
from sarto.api.http.streams import Stream, framed
from sarto.api.openai.messages import ChatCompletion, read_chat
from sarto.api.vertex.generation import find_target, generated
from sarto.control.access import authorization
from sarto.control.models import endpoints
from sarto.errors import Internal, InvalidArgument, NotFound, SartoError
from sarto.names import LocationName
from sarto.schema.generation import GenerateContentRequest
from sarto.serving.generator import Target, collect

logger = logging.getLogger(__name__)
MODEL_IN_BODY = "openapi"
KEY_LOCATION = "us-central1"
"""The location of requests whose project comes from an API key."""
KINDS = {400: "invalid_request_error", 401: "authentication_error", 403: "permission_error", 404: "not_found_error",
         429: "rate_limit_error"}  # fmt: skip
Handler = Callable[[Request], Awaitable[ASGIApp]]


def _in_openai_form(handler: Handler) -> Handler:
    """The handler, with errors in OpenAI's form."""

    @functools.wraps(handler)
    async def answer(request: Request) -> ASGIApp:
        try:
            return await handler(request)
        except SartoError as error:
            return Reply(orjson.dumps(_error(error)), error.http_status)

    return answer


def _error(error: SartoError) -> dict[str, Any]:
    field = error.violations[0].field if isinstance(error, InvalidArgument) and error.violations else None
    kind = KINDS.get(error.http_status, "server_error")
    return {"error": {"message": error.message, "type": kind, "param": field, "code": error.status.lower()}}


@_in_openai_form
async def chat_completions(request: Request) -> ASGIApp:
    body = await read_json(request)
    if not isinstance(body, dict):
        raise InvalidArgument("The body must be a JSON object.")
    name = _model_name(request, body)
    _, target = await in_thread(request, find_target, request, name)
    chat = read_chat(body)
    answer = ChatCompletion(str(body.get("model") or name), int(time.time()))
    if not body.get("stream"):
        chunks = generated(request, target, chat)
        return reply(answer.whole(await until_gone(request, collect(chunks))))
    with_usage = bool((body.get("stream_options") or {}).get("include_usage"))
    pieces = _pieces(request, target, chat, answer, with_usage)
    try:
        first = await until_gone(request, anext(pieces))
    except BaseException:
        await pieces.aclose()
        raise
    return Stream(framed(_with_end(first, pieces), as_events=True))


async def _pieces(
    request: Request, target: Target, chat: GenerateContentRequest, answer: ChatCompletion, with_usage: bool
) -> AsyncGenerator[dict[str, Any]]:
    opened: set[int] = set()
    async with aclosing(generated(request, target, chat)) as chunks:
        async for chunk in chunks:
            for candidate in chunk.candidates:
                index = candidate.index or 0
                if index not in opened:
                    opened.add(index)
                    yield answer.opening(index)
                yield answer.piece(candidate)
            if with_usage and chunk.usage_metadata is not None:
                yield answer.closing(chunk)


async def _with_end(first: dict[str, Any], rest: AsyncGenerator[dict[str, Any]]) -> AsyncGenerator[bytes]:
    """Every piece as JSON, then `[DONE]`; an error becomes the last piece."""
    async with aclosing(rest):
        try:
            yield orjson.dumps(first)
            async for piece in rest:
                yield orjson.dumps(piece)
            yield b"[DONE]"
        except SartoError as error:
            yield orjson.dumps(_error(error))
        except Exception:
            logger.exception("stream failed")
            yield orjson.dumps(_error(Internal("Internal error while streaming; the log has it.")))


def location_of(request: Request) -> LocationName | None:
    """The location of the path or, without one, that of the caller's API key; None for a caller without a key."""
    if "location" in request.path_params:
        return parent(request)
    project = principal(request).key_project
    return LocationName(project, KEY_LOCATION) if project else None


def _model_name(request: Request, body: dict[str, Any]) -> str:
    """The resource that generates: from the path, or from `model` as a resource name, a base model or an endpoint
    id."""
    values = request.path_params
    if values.get("endpoint", MODEL_IN_BODY) != MODEL_IN_BODY:
        return f"{parent(request)}/endpoints/{values['endpoint']}"
    model = body.get("model")
    if not isinstance(model, str) or not model:
        raise InvalidArgument.field("model", "Name a model; GET models lists them.")
    if model.startswith("projects/"):
        return model
    publisher, slash, plain = model.rpartition("/")
    place = location_of(request)
    if place is None:
        return f"publishers/{publisher or 'google'}/models/{plain}"
    if plain.isdigit() and not slash:
        return f"{place}/endpoints/{plain}"
    return f"{place}/publishers/{publisher or 'google'}/models/{plain}"


@_in_openai_form
async def list_models(request: Request) -> Reply:
    return reply({"object": "list", "data": await _models(request)})


@_in_openai_form
async def get_model(request: Request) -> Reply:
    name = request.path_params["model"]
    for row in await _models(request):
        if row["id"] in (name, f"google/{name}"):
            return reply(row)
    raise NotFound(f'Model "{name}" does not exist; GET models lists those that do.')


async def _models(request: Request) -> list[dict[str, Any]]:
    """Base models as `publisher/name`, then tuned ones by endpoint name: those of the project in the path, or of all
    projects whose endpoints the caller may list."""
    names = sorted(services(request).catalog.by_name)
    rows = [_model(name if "/" in name else f"google/{name}", "sarto") for name in names]
    for location in await _places(request):
        token = ""
        while True:
            page, token = await in_control(request, endpoints.list_endpoints, location, 1000, token)
            rows += [_model(row["name"], "user") for row in page]
            if not token:
                break
    return rows


async def _places(request: Request) -> list[LocationName]:
    if "location" in request.path_params:
        return [parent(request)]
    database, caller = services(request).database, principal(request)
    if caller.key_project:
        return [LocationName(caller.key_project, "-")]
    listed = await in_thread(request, authorization.visible_projects, database, caller, "aiplatform.endpoints.list")
    return [LocationName(project.number, "-") for project in listed]


def _model(name: str, owner: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": owner}


_IN_BODY = f"{LOCATION}/endpoints/{MODEL_IN_BODY}"
_CHAT = {"type": "object", "description": "OpenAI's chat completion request"}
_ANSWERS = ({"type": "object"}, "text/event-stream")
ERRORS = "ChatError"
ROUTES: list[Route] = [
    route
    for root in (_IN_BODY, ENDPOINT, "/openai/v1")
    for route in (
        Route(
            "POST", f"{root}/chat/completions", chat_completions, "aiplatform.endpoints.predict",
            "Chat completion in OpenAI's form", _CHAT, _ANSWERS, None, ERRORS, PROMPT_BYTES,
        ),
        *(
            ()
            if root == ENDPOINT
            else (
                Route(
                    "GET", f"{root}/models", list_models, SIGNED_IN, "Models in OpenAI's form",
                    query=None, errors=ERRORS,
                ),
                Route(
                    "GET", f"{root}/models/{{model=**}}", get_model, SIGNED_IN, "One model in OpenAI's form",
                    query=None, errors=ERRORS,
                ),
            )
        ),
    )
]  # fmt: skip
