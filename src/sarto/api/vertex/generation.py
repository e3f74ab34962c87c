"""generateContent and related methods, on an endpoint, a tuned model or a publisher model."""

from __future__ import annotations

import asyncio
import base64
import secrets
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from typing import cast

from starlette.requests import Request
from starlette.types import ASGIApp

from sarto.api.http.requests import read_body, read_message, resource_name, until_gone
from sarto.api.http.responses import Reply, reply
from sarto.api.http.routing import ENDPOINT, MODEL, PROMPT_BYTES, PUBLISHER_MODEL, Route
from sarto.api.http.services import in_thread, principal, services
from sarto.api.http.streams import stream
from sarto.control.context import Control
from sarto.control.models import resolution
from sarto.control.models.resolution import ResolvedModel
from sarto.control.runs import sealed_files
from sarto.errors import DeadlineExceeded, FailedPrecondition, PayloadTooLarge
from sarto.schema.generation import (
    CountTokensRequest,
    CountTokensResponse,
    GenerateContentRequest,
    GenerateContentResponse,
)
from sarto.schema.wire import now
from sarto.serving.generator import Target, collect


async def generate_content(request: Request) -> Reply:
    body = await read_message(request, GenerateContentRequest)
    deployed, target = await _target(request)
    answers = _answers(request, deployed, target, body)
    return reply(await until_gone(request, collect(answers)))


async def stream_generate_content(request: Request) -> ASGIApp:
    body = await read_message(request, GenerateContentRequest)
    deployed, target = await _target(request)
    return await stream(request, _answers(request, deployed, target, body))


async def count_tokens(request: Request) -> Reply:
    body = await read_message(request, CountTokensRequest)
    _, target = await _target(request)
    return reply(await until_gone(request, services(request).generator.count_tokens(target, body)))


async def compute_tokens(request: Request) -> Reply:
    body = await read_message(request, CountTokensRequest)
    _, target = await _target(request)
    tokens = await until_gone(request, services(request).generator.compute_tokens(target, body))
    texts = [base64.b64encode(text.encode()).decode() for text in tokens.texts]
    ids = [str(token) for token in tokens.ids]
    return reply({"tokensInfo": [{"tokens": texts, "tokenIds": ids, "role": "user"}]})


async def predict(request: Request) -> Reply:
    """Refuse predict and rawPredict, which tuned Gemini models do not have; the error names the method to call."""
    with suppress(PayloadTooLarge):  # of no interest
        await read_body(request)
    await _target(request)
    name = resource_name(request)
    raise FailedPrecondition(
        f"{name} cannot be reached through predict or rawPredict; use {name}:generateContent or :streamGenerateContent."
    )


async def _target(request: Request) -> tuple[ResolvedModel, Target]:
    return await in_thread(request, find_target, request, resource_name(request))


def find_target(request: Request, name: str) -> tuple[ResolvedModel, Target]:
    """The resource that generates for a name, and the generator's target. Raises NotFound, FailedPrecondition and
    others."""
    served = services(request)
    deployed = resolution.resolve(served.control, principal(request), name)
    return deployed, target_of(served.control, deployed)


def target_of(control: Control, deployed: ResolvedModel) -> Target:
    """The generator's target. Raises FailedPrecondition if the base weights are not on this machine, with the command
    to get them, or if the adapter's key cannot be used."""
    folder = sealed_files.adapter(control, deployed.adapter_folder) if deployed.adapter_folder else ""
    return Target(control.base(deployed.weights), str(folder), deployed.adapter_digest, deployed.tenant)


async def _answers(
    request: Request, deployed: ResolvedModel, target: Target, body: GenerateContentRequest
) -> AsyncGenerator[GenerateContentResponse]:
    """The generator's chunks with model version, response id and time."""
    response_id, create_time = secrets.token_urlsafe(16), now()
    async with aclosing(generated(request, target, body)) as chunks:
        async for chunk in chunks:
            chunk.model_version = deployed.base_model
            chunk.response_id = response_id
            chunk.create_time = create_time
            yield chunk


def generated(
    request: Request, target: Target, body: GenerateContentRequest
) -> AsyncGenerator[GenerateContentResponse]:
    """The generator's chunks, for at most the seconds in the client's X-Server-Timeout. After them the generator is
    closed, and DeadlineExceeded is raised."""
    source = cast("AsyncGenerator[GenerateContentResponse]", services(request).generator.generate(target, body))
    try:
        seconds = float(request.headers.get("x-server-timeout", "0"))
    except ValueError:
        seconds = 0.0
    return _until(source, seconds) if 0.0 < seconds < 86_400.0 else source


async def _until(
    source: AsyncGenerator[GenerateContentResponse], seconds: float
) -> AsyncGenerator[GenerateContentResponse]:
    clock = asyncio.get_running_loop().time
    end = clock() + seconds
    async with aclosing(source):
        while True:
            try:
                chunk = await asyncio.wait_for(anext(source, None), end - clock())
            except TimeoutError:
                raise DeadlineExceeded(
                    f"The answer was not complete within the {seconds:g} s the client gave."
                ) from None
            if chunk is None:
                return
            yield chunk


ROUTES = [
    route
    for target in (ENDPOINT, MODEL, PUBLISHER_MODEL)
    for route in (
        Route(
            "POST", f"{target}:generateContent", generate_content, "aiplatform.endpoints.predict",
            "Generate content", GenerateContentRequest, GenerateContentResponse, body_bytes=PROMPT_BYTES,
        ),
        Route(
            "POST", f"{target}:streamGenerateContent", stream_generate_content,
            "aiplatform.endpoints.predict", "Stream generated content: events with alt=sse, else one array",
            GenerateContentRequest, ("text/event-stream", {"type": "array"}), ("alt",), body_bytes=PROMPT_BYTES,
        ),
        Route(
            "POST", f"{target}:countTokens", count_tokens, "aiplatform.endpoints.predict",
            "Count the tokens of a request", CountTokensRequest, CountTokensResponse, body_bytes=PROMPT_BYTES,
        ),
        Route(
            "POST", f"{target}:computeTokens", compute_tokens, "aiplatform.endpoints.predict",
            "The tokens of a request", {"type": "object"}, body_bytes=PROMPT_BYTES,
        ),
        Route(
            "POST", f"{target}:predict", predict, "aiplatform.endpoints.predict",
            "Refused: the error names the method to call", {"type": "object"}, body_bytes=PROMPT_BYTES,
        ),
        Route(
            "POST", f"{target}:rawPredict", predict, "aiplatform.endpoints.predict",
            "Refused: the error names the method to call", {"type": "object"}, body_bytes=PROMPT_BYTES,
        ),
    )
]  # fmt: skip
