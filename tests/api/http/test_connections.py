"""Connections that are slow, endless or too many, against a real port with short limits."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
import uvicorn

pytest.importorskip("httptools")

from sarto.api.http.connections import BoundedProtocol, ConnectionLimit

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
BEGUN: list[bytes] = []
HEAD = b"POST / HTTP/1.1\r\nHost: localhost\r\n"


async def application(scope: Any, receive: Any, send: Any) -> None:
    """Reads the body; answers as many bytes as the query says."""
    BEGUN.append(scope["query_string"])
    body = b""
    while True:
        event = await receive()
        body += event.get("body", b"")
        if event["type"] == "http.disconnect" or not event["more_body"]:
            break
    await send({"type": "http.response.start", "status": 200, "headers": []})
    block = b"x" * 65_536
    for _ in range(int(scope["query_string"] or b"0")):
        await send({"type": "http.response.body", "body": block, "more_body": True})
    await send({"type": "http.response.body", "body": str(len(body)).encode()})


@asynccontextmanager
async def listening(limit: ConnectionLimit) -> AsyncIterator[Callable[[], Awaitable[Streams]]]:
    config = uvicorn.Config(
        application, http=partial(BoundedProtocol, limit=limit), ws="none", lifespan="off", log_config=None, port=0
    )  # type: ignore[arg-type]
    server = uvicorn.Server(config)
    server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
    task = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    writers: list[asyncio.StreamWriter] = []

    async def connect() -> Streams:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writers.append(writer)
        return reader, writer

    try:
        yield connect
    finally:
        for writer in writers:
            writer.transport.abort()
        server.should_exit = server.force_exit = True
        await task


def bounded(**given: Any) -> ConnectionLimit:
    return ConnectionLimit(**{"connections": 20, "per_address": 10, "head_seconds": 1.0, "body_seconds": 1.0, **given})


def run(act: Callable[[Callable[[], Awaitable[Streams]], ConnectionLimit], Awaitable[None]], **given: Any) -> None:
    async def main() -> None:
        limit = bounded(**given)
        async with listening(limit) as connect, asyncio.timeout(30):
            await act(connect, limit)

    asyncio.run(main())


async def rest(reader: asyncio.StreamReader) -> bytes:
    """What comes until the other side hangs up, politely or not."""
    found = b""
    try:
        while piece := await reader.read(65_536):
            found += piece
    except ConnectionResetError:
        pass
    return found


@pytest.mark.parametrize("endless", [b"a", b"a: b\r\n", b"a: b\r\nc: "])
def test_a_head_without_end_is_431_at_64_kib(endless: bytes) -> None:
    async def act(connect: Any, _: ConnectionLimit) -> None:
        reader, writer = await connect()
        answer = asyncio.create_task(rest(reader))
        writer.write(HEAD + b"x: ")
        sent = 0
        while not answer.done() and sent < 4_000_000:
            try:
                writer.write(endless * 1000)
                await writer.drain()
            except ConnectionError:
                break
            sent += len(endless) * 1000
            await asyncio.sleep(0)
        assert (await answer).startswith(b"HTTP/1.1 431 ")

    run(act, head_seconds=20.0)  # on a busy machine 64 KiB of short lines take more than the second of other tests


def test_trailers_and_chunk_extensions_without_end_are_refused() -> None:
    async def act(connect: Any, _: ConnectionLimit) -> None:
        for endless in (b"0\r\n" + b"t: " + b"x" * 300_000, b"1;" + b"x" * 300_000):
            reader, writer = await connect()
            writer.write(HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + endless)
            assert b" 200 " not in await rest(reader)

    run(act)


@pytest.mark.parametrize("begun", [b"", HEAD, b"\r\n", b"G"])
def test_a_head_that_does_not_come_is_408(begun: bytes) -> None:
    async def act(connect: Any, limit: ConnectionLimit) -> None:
        reader, writer = await connect()
        writer.write(begun)
        assert (await rest(reader)).startswith(b"HTTP/1.1 408 ")
        writer.close()

    run(act)


def test_a_head_that_drips_behind_an_answer_is_closed() -> None:
    async def act(connect: Any, limit: ConnectionLimit) -> None:
        reader, writer = await connect()
        writer.write(HEAD + b"Content-Length: 0\r\n\r\n")
        assert (await reader.readuntil(b"\r\n")).startswith(b"HTTP/1.1 200")
        closed = asyncio.create_task(rest(reader))
        while not closed.done():
            writer.write(b"\r\n")
            await asyncio.sleep(0.1)
        assert b"408" in await closed

    run(act)


def test_a_body_that_drips_is_closed_and_a_slow_honest_one_is_read() -> None:
    async def act(connect: Any, _: ConnectionLimit) -> None:
        reader, writer = await connect()
        writer.write(HEAD + b"Content-Length: 1000000\r\n\r\n")
        closed = asyncio.create_task(rest(reader))
        while not closed.done():
            writer.write(b"x")
            await asyncio.sleep(0.1)
        assert await closed == b""
        reader, writer = await connect()
        writer.write(HEAD + b"Content-Length: 12000\r\n\r\n")
        for _ in range(6):
            writer.write(b"x" * 2000)
            await asyncio.sleep(0.5)
        assert (await reader.readuntil(b"12000")).startswith(b"HTTP/1.1 200")
        writer.close()

    run(act)


def test_a_client_that_does_not_read_its_answer_is_closed_and_a_slow_one_gets_all_of_it() -> None:
    async def act(connect: Any, limit: ConnectionLimit) -> None:
        slow_reader, slow = await connect()
        slow.write(b"GET /?200 HTTP/1.1\r\nHost: localhost\r\n\r\n")
        _, deaf = await connect()
        deaf.transport.pause_reading()
        deaf.write(b"GET /?2000 HTTP/1.1\r\nHost: localhost\r\n\r\n" * 5)
        read, began = 0, time.monotonic()
        while len(limit.open) > 1 or read < 200 * 65_536:
            if read < 200 * 65_536:
                read += len(await slow_reader.read(131_072))
                await asyncio.sleep(0.02)
            else:
                await asyncio.sleep(0.05)
            assert time.monotonic() - began < 25
        deaf.transport.abort()
        slow.close()
        assert BEGUN.count(b"2000") == 1

    run(act, read_seconds=1.5)


def test_connections_have_a_limit_for_one_address_and_for_all() -> None:
    async def act(connect: Any, limit: ConnectionLimit) -> None:
        held = [await connect() for _ in range(limit.per_address)]
        reader, _ = await connect()
        assert (await rest(reader)).startswith(b"HTTP/1.1 429 ")
        for _, writer in held:
            writer.close()
        while limit.open:
            await asyncio.sleep(0.05)
        limit.connections = 3
        held = [await connect() for _ in range(3)]
        reader, _ = await connect()
        assert (await rest(reader)).startswith(b"HTTP/1.1 503 ")
        assert sum(limit.addresses.values()) == len(limit.open) <= 4

    run(act, head_seconds=20.0)
