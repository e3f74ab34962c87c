"""Bombs at the gRPC door: connections that say nothing, calls without a token or an end, requests of many values."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import grpc
import grpc.aio

from tests.bombs.site import Site

COUNT = "/google.cloud.aiplatform.v1.LlmUtilityService/CountTokens"
LIST = "/google.cloud.aiplatform.v1.GenAiTuningService/ListTuningJobs"
VALUES = b"\x22\x00" * 1_900_000
"""Of two bytes each: just below the 4 MiB of a message."""
ANSWERED = {
    grpc.StatusCode.OK: 200,
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.UNAUTHENTICATED: 401,
    grpc.StatusCode.PERMISSION_DENIED: 403,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
    grpc.StatusCode.CANCELLED: 0,
    grpc.StatusCode.DEADLINE_EXCEEDED: 0,
}
"""As HTTP says it; 0 for calls that one side ended. All others are faults of the door."""


OWN_CONNECTION = [("grpc.use_local_subchannel_pool", 1)]


async def calls(site: Site) -> list[int]:
    for _ in range(20):
        await site.hold(b"", site.grpc_port)
    tokens = ("", "Bearer invented", f"Bearer {site.tokens['user']}", f"Bearer {site.tokens['nobody']}")
    answers = await asyncio.gather(*(_calls_of(site, token) for token in tokens))
    return [status for statuses in answers for status in statuses]


async def _calls_of(site: Site, token: str) -> list[int]:
    """Of one caller over one connection: fewer at once than it may have streams, for those beyond cut it off."""
    credentials = grpc.ssl_channel_credentials(site.grpc_authority)
    place = f"localhost:{site.grpc_port}"
    async with grpc.aio.secure_channel(place, credentials, options=OWN_CONNECTION) as channel:
        bodies = ((COUNT, VALUES), (COUNT, b"\xff" * 4000), (LIST, b""), (LIST, b"\x0a\x05" + b"../.." * 9))
        asked = [_unary(channel, path, body, token) for path, body in bodies for _ in range(5)]
        return await asyncio.gather(*asked, *(_endless(channel, token) for _ in range(10)))


async def _unary(channel: grpc.aio.Channel, path: str, body: bytes, token: str) -> int:
    return await _status(channel.unary_unary(path)(body, timeout=20, metadata=_metadata(token)))


async def _endless(channel: grpc.aio.Channel, token: str) -> int:
    """A request that never comes."""

    async def never() -> AsyncIterator[bytes]:
        await asyncio.sleep(600)
        yield b""

    return await _status(channel.stream_unary(COUNT)(never(), timeout=5, metadata=_metadata(token)))


def _metadata(token: str) -> list[tuple[str, str]]:
    return [("authorization", token)] if token else []


async def _status(call: grpc.aio.UnaryUnaryCall | grpc.aio.StreamUnaryCall) -> int:
    code, words = await call.code(), await call.details() or ""
    if code not in ANSWERED:
        print("the gRPC door:", code, words[:200])
    return ANSWERED.get(code, 500 + code.value[0])
