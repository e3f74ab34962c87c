"""The doors: faults of ours, streams, and clients that hang up, driven as an ASGI server drives them."""

from __future__ import annotations

import asyncio
import gzip
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

import orjson
import pytest
from starlette.requests import Request

from sarto.api.http.application import Application
from sarto.api.http.callers import AllowedHosts
from sarto.api.http.requests import until_gone
from sarto.api.http.responses import Reply, accepts_gzip
from sarto.api.http.routing import PUBLIC, Route
from sarto.api.http.services import Services
from sarto.api.http.streams import stream
from sarto.errors import Cancelled, Unavailable
from sarto.schema.generation import GenerateContentResponse

Handler = Callable[[Request], Awaitable[Any]]


def doors(handler: Handler) -> Application:
    made = Application([Route("GET", "/x", handler, PUBLIC, "", query=("page_size", "alt"))])
    made.services = Services(**dict.fromkeys(Services.__dataclass_fields__) | {"hosts": AllowedHosts("0.0.0.0")})  # type: ignore[arg-type]
    return made


class Client:
    """One request; `sent` is what the application answered. `hang_up` disconnects."""

    def __init__(self, query: bytes = b"", headers: list[tuple[bytes, bytes]] | None = None) -> None:
        self.scope = {
            "type": "http", "method": "GET", "path": "/x", "raw_path": b"/x", "query_string": query,
            "headers": headers or [], "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 2), "scheme": "http",
        }  # fmt: skip
        self.sent: list[Any] = []
        self._gone = asyncio.Event()
        self._body_read = False

    async def receive(self) -> Any:
        if not self._body_read:
            self._body_read = True
            return {"type": "http.request", "body": b"", "more_body": False}
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, event: Any) -> None:
        self.sent.append(event)

    def hang_up(self) -> None:
        self._gone.set()

    @property
    def status(self) -> int:
        return int(self.sent[0]["status"])

    @property
    def body(self) -> bytes:
        return b"".join(event.get("body", b"") for event in self.sent)


def ask(handler: Handler, client: Client) -> Client:
    asyncio.run(doors(handler)(client.scope, client.receive, client.send))
    return client


def piece(text: str) -> GenerateContentResponse:
    return GenerateContentResponse(response_id=text)


def test_a_fault_of_ours_has_an_id_and_no_traceback(caplog: pytest.LogCaptureFixture) -> None:
    async def handler(request: Request) -> Reply:
        raise ValueError("secret words")

    with caplog.at_level(logging.ERROR):
        client = ask(handler, Client())
    error = orjson.loads(client.body)["error"]
    identifier = dict(client.sent[0]["headers"])[b"x-request-id"].decode()
    assert (client.status, error["status"]) == (500, "INTERNAL")
    assert identifier in error["message"] and "secret" not in client.body.decode()
    assert identifier in [record.request for record in caplog.records]


def test_unknown_query_parameters_are_named_and_googles_own_ignored() -> None:
    async def handler(request: Request) -> Reply:
        return Reply(orjson.dumps(request.scope["sarto.query"]))

    assert orjson.loads(ask(handler, Client(b"pageSize=3&%24alt=json%3Bx&key=k&prettyPrint=1")).body) == {
        "page_size": "3"
    }
    assert ask(handler, Client(b"colour=red")).status == 400


def test_bodies_are_compressed_when_asked() -> None:
    async def handler(request: Request) -> Reply:
        return Reply(b'{"a": "' + b"x" * 100 + b'"}')

    client = ask(handler, Client(headers=[(b"accept-encoding", b"br, gzip")]))
    assert accepts_gzip(client.scope) and gzip.decompress(client.body).startswith(b'{"a"')
    assert ask(handler, Client()).body.startswith(b'{"a"')


@pytest.mark.parametrize(("query", "expected"), [(b"", "array"), (b"alt=sse", "events"), (b"%24alt=sse", "array")])
def test_streams_are_one_array_or_events(query: bytes, expected: str) -> None:
    async def source() -> AsyncGenerator[GenerateContentResponse]:
        yield piece("a")
        yield piece("b")

    async def handler(request: Request) -> Any:
        return await stream(request, source())

    client = ask(handler, Client(query))
    if expected == "array":
        assert [one["responseId"] for one in orjson.loads(client.body)] == ["a", "b"]
    else:
        lines = client.body.split(b"\r\n\r\n")
        assert [orjson.loads(line.removeprefix(b"data: "))["responseId"] for line in lines if line] == ["a", "b"]


def test_an_empty_stream_is_an_empty_array() -> None:
    async def source() -> AsyncGenerator[GenerateContentResponse]:
        for text in ():
            yield piece(text)

    async def handler(request: Request) -> Any:
        return await stream(request, source())

    assert orjson.loads(ask(handler, Client()).body) == []


@pytest.mark.parametrize("query", [b"", b"alt=sse"])
def test_a_fault_in_the_middle_is_the_last_piece(query: bytes) -> None:
    async def source() -> AsyncGenerator[GenerateContentResponse]:
        yield piece("a")
        raise Unavailable("the worker ended")

    async def handler(request: Request) -> Any:
        return await stream(request, source())

    client = ask(handler, Client(query))
    assert client.status == 200
    text = client.body.decode()
    last = orjson.loads(text.split("\r\n\r\n")[-2].removeprefix("data: ")) if query else orjson.loads(text)[-1]
    assert last["error"]["code"] == 503 and last["error"]["status"] == "UNAVAILABLE"


def test_a_fault_before_the_first_piece_is_the_answer() -> None:
    async def source() -> AsyncGenerator[GenerateContentResponse]:
        raise Unavailable("the worker ended")
        yield piece("never")

    async def handler(request: Request) -> Any:
        return await stream(request, source())

    assert ask(handler, Client()).status == 503


@pytest.mark.parametrize("pieces_before", [0, 2])
def test_hanging_up_closes_the_source(pieces_before: int) -> None:
    closed = asyncio.Event()
    waiting = asyncio.Event()

    async def source() -> AsyncGenerator[GenerateContentResponse]:
        try:
            for number in range(pieces_before):
                yield piece(str(number))
            waiting.set()
            await asyncio.Event().wait()
            yield piece("never")
        finally:
            closed.set()

    async def handler(request: Request) -> Any:
        await request.body()
        return await stream(request, source())

    async def scenario() -> None:
        client = Client()
        running = asyncio.ensure_future(doors(handler)(client.scope, client.receive, client.send))
        await waiting.wait()
        client.hang_up()
        await asyncio.wait_for(running, 5)
        assert closed.is_set()

    asyncio.run(scenario())


def test_hanging_up_cancels_work_that_is_waited_for() -> None:
    async def scenario() -> None:
        client, cancelled, begun = Client(), asyncio.Event(), asyncio.Event()

        async def work() -> None:
            begun.set()
            try:
                await asyncio.Event().wait()
            finally:
                cancelled.set()

        request = Request(client.scope, client.receive)
        await request.body()
        running = asyncio.ensure_future(until_gone(request, work()))
        await begun.wait()
        client.hang_up()
        with pytest.raises(Cancelled):
            await asyncio.wait_for(running, 5)
        assert cancelled.is_set()

    asyncio.run(scenario())
