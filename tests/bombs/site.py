"""A running service as those see it who attack it: callers in every role, and connections that do as they like."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

CALLERS: tuple[str | None, ...] = (None, "nobody", "viewer", "user", "owner elsewhere")
"""Without a token, without a role, and with one in the project `alpha`, or in another."""


@dataclass
class Site:
    port: int
    tokens: dict[str, str]
    job: str
    """Path of a tuning job that does not end."""
    operation: str
    """Path of an operation that does not end."""
    endpoint: str = ""
    """Path of an endpoint of a model on a base of the attacker's own, whose template and tokenizer are bombs."""
    model: str = ""
    """Path of that model."""
    grpc_port: int = 0
    grpc_authority: bytes = b""
    """What the certificate of the gRPC door is checked by."""
    opened: list[asyncio.Future[tuple[asyncio.StreamReader, asyncio.StreamWriter]]] = field(default_factory=list)
    """Every connection, also one whose opening was given up: a test that ends leaves none open."""

    async def ask(
        self,
        caller: str | None,
        method: str,
        path: str,
        body: bytes = b"",
        content_type: str = "application/json",
        bearer: str = "",
    ) -> int:
        """The status of the answer; 0 where the service hung up."""
        head = self._head(caller, method, path, len(body), content_type, bearer) + b"Connection: close\r\n\r\n"
        return await self.pour(head, body, 1)

    async def hold(self, start: bytes, port: int = 0) -> None:
        """A connection that sends that much, and neither more nor reads."""
        _, writer = await self._open(port)
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        writer.write(start)

    async def pour(self, start: bytes, piece: bytes, times: int) -> int:
        """The status of the answer to what goes on and on; 0 where the service hung up."""
        reader, writer = await self._open()
        sending = asyncio.ensure_future(_pour(writer, start, *([piece] * times)))
        try:
            return await _status(reader)
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
            writer.transport.abort()

    async def park(self, caller: str, method: str, path: str, body: bytes, accept: str = "application/json") -> int:
        """A request that stays; the status if it is answered soon and is not a stream that has begun."""
        reader, writer = await self._open()
        head = self._head(caller, method, path, len(body), "application/json", "")
        writer.write(head + f"Accept: {accept}\r\n\r\n".encode() + body)
        try:
            status = await asyncio.wait_for(_status(reader), 4.0)
        except TimeoutError:
            return 0
        return 0 if status == 200 else status

    async def let_go(self) -> None:
        for opening in self.opened:
            opening.cancel()
        for found in await asyncio.gather(*self.opened, return_exceptions=True):
            if not isinstance(found, BaseException):
                found[1].transport.abort()
        await asyncio.sleep(0)  # in which they close

    async def _open(self, port: int = 0) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        opening = asyncio.ensure_future(asyncio.open_connection("127.0.0.1", port or self.port, limit=1 << 20))
        self.opened.append(opening)
        return await asyncio.shield(opening)

    def _head(self, caller: str | None, method: str, path: str, size: int, content_type: str, bearer: str) -> bytes:
        token = bearer or (self.tokens[caller] if caller else "")
        lines = [f"{method} {path} HTTP/1.1", "Host: localhost", f"Content-Type: {content_type}"]
        lines += [f"Content-Length: {size}"] if size or method != "GET" else []
        lines += [f"Authorization: Bearer {token}"] if token else []
        return "".join(f"{line}\r\n" for line in lines).encode()


async def _pour(writer: asyncio.StreamWriter, *pieces: bytes) -> None:
    try:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
    except ConnectionError:
        pass


async def _status(reader: asyncio.StreamReader) -> int:
    try:
        line = await reader.readline()
    except (ConnectionError, ValueError):
        return 0
    return int(line.split()[1]) if line else 0
