"""Protocol between the server and its generation worker: frames over one connection, many requests at once.

A frame is four bytes of length (big endian) and that many bytes of JSON. Client to worker: `{"id", "call", "target",
"request"}` opens a request, `{"id", "cancel": true}` drops it. Worker to client: `{"id", "chunk"}` any number of times,
then `{"id", "end": true}` or `{"id", "error": google.rpc.Status}`. Both sides use this module.
"""

from __future__ import annotations

import asyncio
from typing import Any

import orjson

from sarto.contract.common import BaseWeights
from sarto.errors import InvalidArgument, PayloadTooLarge
from sarto.serving.generator import Target

MAX_FRAME_BYTES = 256 * 1024 * 1024
"""Longest frame, above the size of the largest message, a data report over a large dataset."""


def pack(message: dict[str, Any]) -> bytes:
    body = orjson.dumps(message)
    if len(body) > MAX_FRAME_BYTES:
        raise PayloadTooLarge(f"A message of {len(body)} bytes exceeds the {MAX_FRAME_BYTES} a worker reads.")
    return len(body).to_bytes(4, "big") + body


async def read_frame(reader: asyncio.StreamReader) -> dict[str, Any]:
    """The next message. Raises IncompleteReadError when the connection is closed."""
    size = int.from_bytes(await reader.readexactly(4), "big")
    if size > MAX_FRAME_BYTES:
        raise InvalidArgument(f"A frame of {size} bytes exceeds {MAX_FRAME_BYTES}.")
    message = orjson.loads(await reader.readexactly(size))
    assert isinstance(message, dict)
    return message


def write_target(target: Target | None) -> dict[str, Any] | None:
    if target is None:
        return None
    return {
        "base": target.base.model_dump(),
        "adapterFolder": target.adapter_folder,
        "adapterDigest": target.adapter_digest,
        "tenant": target.tenant,
    }


def read_target(value: dict[str, Any] | None) -> Target | None:
    if value is None:
        return None
    return Target(BaseWeights(**value["base"]), value["adapterFolder"], value["adapterDigest"], value["tenant"])
