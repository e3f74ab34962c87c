"""OpenAI's chat completions, at the paths that OpenAI clients use.

`…/endpoints/openapi` and `/openai/v1` take the model's name from the body, `…/endpoints/ID` from the path.
"""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import orjson
from starlette.requests import Request
from starlette.types import ASGIApp

from sarto.api.http.requests import parent, read_json, until_gone
from sarto.api.http.responses import reply
from sarto.api.http.routing import ENDPOINT, PROMPT_BYTES, Route
from sarto.api.http.services import in_control, in_thread
from sarto.api.http.streams import Stream, framed
from sarto.api.openai.errors import ERRORS, error_body, in_openai_form, refusal
from sarto.api.openai.messages import ChatCompletion, read_chat
from sarto.api.openai.place import MODEL_IN_BODY, ROOTS, location_of
from sarto.api.vertex.generation import find_target, generated
from sarto.control.models import tuned_names
from sarto.errors import Internal, InvalidArgument, SartoError
from sarto.schema.generation import GenerateContentRequest
from sarto.serving.generator import Target, collect

logger = logging.getLogger(__name__)


@in_openai_form
async def chat_completions(request: Request) -> ASGIApp:
    body = await read_json(request)
    if not isinstance(body, dict):
        raise InvalidArgument("The body must be a JSON object.")
    name = _model_name(request, body)
    if name.startswith(tuned_names.PREFIX):
        name = str((await in_control(request, tuned_names.find, name)).name)
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
            yield orjson.dumps(error_body(error))
        except Exception:
            logger.exception("stream failed")
            yield orjson.dumps(error_body(Internal("Internal error while streaming; the log has it.")))


def _model_name(request: Request, body: dict[str, Any]) -> str:
    """The resource that generates: from the path, or from `model` as a resource name, a base model, an endpoint id, or
    a tuned model's name `ft:…`, which is returned as it is."""
    values = request.path_params
    if values.get("endpoint", MODEL_IN_BODY) != MODEL_IN_BODY:
        return f"{parent(request)}/endpoints/{values['endpoint']}"
    model = body.get("model")
    if not isinstance(model, str) or not model:
        raise InvalidArgument.field("model", "Name a model; GET models lists them.")
    if model.startswith(("projects/", tuned_names.PREFIX)):
        return model
    publisher, slash, plain = model.rpartition("/")
    place = location_of(request)
    if place is None:
        return f"publishers/{publisher or 'google'}/models/{plain}"
    if plain.isdigit() and not slash:
        return f"{place}/endpoints/{plain}"
    return f"{place}/publishers/{publisher or 'google'}/models/{plain}"


_CHAT = {"type": "object", "description": "OpenAI's chat completion request"}
_ANSWERS = ({"type": "object"}, "text/event-stream")
ROUTES: list[Route] = [
    Route(
        "POST", f"{root}/chat/completions", chat_completions, "aiplatform.endpoints.predict",
        "Chat completion in OpenAI's form", _CHAT, _ANSWERS, None, ERRORS, refusal, PROMPT_BYTES,
    )
    for root in (ROOTS[0], ENDPOINT, ROOTS[1])
]  # fmt: skip
