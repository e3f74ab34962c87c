"""generateContent and its relatives, on an endpoint, a tuned model or a publisher model alike."""

from __future__ import annotations

import asyncio
import base64
import secrets
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import cast

from starlette.requests import Request
from starlette.types import ASGIApp

from sarto.api.http import (
    Reply,
    in_thread,
    principal,
    read_body,
    read_json,
    read_message,
    reply,
    resource_name,
    services,
    until_gone,
)
from sarto.api.streams import stream
from sarto.control import resolution, sealing
from sarto.control.context import Control
from sarto.control.resolution import Deployed
from sarto.errors import DeadlineExceeded, FailedPrecondition
from sarto.schema.generation import CountTokensRequest, GenerateContentRequest, GenerateContentResponse
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
    return reply(await services(request).generator.count_tokens(target, body))


async def compute_tokens(request: Request) -> Reply:
    payload = await read_json(request)
    _, target = await _target(request)
    found = await services(request).generator.inspect(target, "compute_tokens", payload)
    texts = [base64.b64encode(text.encode()).decode() for text in found["tokens"]]
    ids = [str(token) for token in found["tokenIds"]]
    return reply({"tokensInfo": [{"tokens": texts, "tokenIds": ids, "role": "user"}]})


async def predict(request: Request) -> Reply:
    """Tuned Gemini models do not answer predict or rawPredict; this says what does."""
    await read_body(request)
    await _target(request)
    name = resource_name(request)
    raise FailedPrecondition(
        f"{name} cannot be reached through predict or rawPredict; use {name}:generateContent or :streamGenerateContent."
    )


async def _target(request: Request) -> tuple[Deployed, Target]:
    return await in_thread(request, find_target, request, resource_name(request))


def find_target(request: Request, name: str) -> tuple[Deployed, Target]:
    """What answers a name, and what to hand the generator for it. Raises NotFound, FailedPrecondition and the like."""
    served = services(request)
    deployed = resolution.resolve(served.control, principal(request), name)
    return deployed, target_of(served.control, deployed)


def target_of(control: Control, deployed: Deployed) -> Target:
    """Raises FailedPrecondition, with the command to get them, when the base weights are not on this machine, and when
    the adapter is sealed under a key that cannot be used."""
    folder = sealing.adapter(control, deployed.adapter_folder)
    return Target(control.base(deployed.weights), folder, deployed.adapter_digest)


async def _answers(
    request: Request, deployed: Deployed, target: Target, body: GenerateContentRequest
) -> AsyncGenerator[GenerateContentResponse]:
    """The generator's chunks with what only the doors know: model version, response id, time."""
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
    """The generator's chunks, for as many seconds as the client gives in X-Server-Timeout, if it gives any. Past them
    the generator is closed, and DeadlineExceeded is raised."""
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
