"""Which addresses a user may have the service call, and that each call ends in time, whatever the server does."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from sarto.errors import InvalidArgument, Unavailable
from sarto.system import outbound_http

SECONDS = 1.0
"""Given to each call; one that began anew with each byte would take ten times as long."""


@contextmanager
def server(answer: Callable[[socket.socket], None]) -> Iterator[str]:
    """A server that treats its first connection as told, and its address."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                try:
                    answer(connection)
                except OSError:
                    pass  # the caller hung up

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
        finally:
            thread.join(10)


def call(uri: str) -> outbound_http.HttpAnswer:
    return outbound_http.post(outbound_http.parse(uri, "uri", allow_private=True), b"{}", {}, SECONDS)


def drip(connection: socket.socket, before: bytes) -> None:
    connection.sendall(before)
    for _ in range(100):
        connection.sendall(b"x")
        time.sleep(0.1)


@pytest.mark.parametrize(
    "before",
    [b"", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n", b"HTTP/1.1 200 OK\r\n\r\n"],
    ids=["status line", "head", "counted body", "body"],
)
def test_a_server_that_drips_holds_a_call_no_longer_than_it_may_take(before: bytes) -> None:
    with server(lambda connection: drip(connection, before)) as uri:
        began = time.monotonic()
        with pytest.raises(TimeoutError, match="within 1 seconds"):
            call(uri)
    assert time.monotonic() - began < 5 * SECONDS


def test_a_server_that_never_speaks_tls_holds_no_call() -> None:
    with server(lambda connection: drip(connection, b"")) as uri, pytest.raises((TimeoutError, OSError)):
        call(uri.replace("http://", "https://"))


def test_an_answer_in_time_is_read_whole() -> None:
    def answer(connection: socket.socket) -> None:
        connection.recv(1 << 16)
        connection.sendall(b"HTTP/1.1 503 Busy\r\nRetry-After: 7\r\nContent-Length: 4\r\n\r\nlate")

    with server(answer) as uri:
        assert call(uri) == outbound_http.HttpAnswer(503, b"late", "7")


@pytest.mark.parametrize("address", ["8.8.8.8", "2001:4860:4860::8888", "2606:4700::1111"])
def test_a_public_address_is_called(address: str) -> None:
    assert outbound_http.is_public(address)


@pytest.mark.parametrize(
    "address",
    [
        "64:ff9b:1::a00:1", "64:ff9b::a00:1", "::ffff:0:10.0.0.1", "::ffff:10.0.0.1", "::ffff:8.8.8.8", "::10.0.0.1",
        "fec0::1", "fe80::1%1", "fc00::1", "ff02::1", "::1", "::", "100::1", "5f00::1", "2002:a00:1::", "2001::1",
        "2001:2::1", "2001:db8::1", "3fff::1", "192.0.0.8", "192.0.0.1", "192.88.99.1", "192.0.2.1", "10.0.0.1",
        "100.64.0.1", "169.254.169.254", "127.0.0.1", "0.0.0.0", "224.0.0.1", "240.0.0.1", "255.255.255.255",
    ],
)  # fmt: skip
def test_a_special_address_is_not(address: str) -> None:
    assert not outbound_http.is_public(address)


def test_strangers_are_called_at_ports_of_https_alone() -> None:
    for port in ("", ":443", ":8443"):
        assert outbound_http.parse(f"https://8.8.8.8{port}/", "uri", allow_private=False)
    for port in (22, 25, 80, 6379):
        with pytest.raises(InvalidArgument, match="443 and 8443"):
            outbound_http.parse(f"https://8.8.8.8:{port}/", "uri", allow_private=False)
        assert outbound_http.parse(f"https://8.8.8.8:{port}/", "uri", allow_private=True).port == port


def test_a_refusal_tells_neither_the_address_of_a_name_nor_that_there_is_none() -> None:
    words = set()
    for host in ("localhost", "nobody-here.invalid"):
        with pytest.raises(Unavailable) as refusal:
            outbound_http.resolve(outbound_http.parse(f"https://{host}/", "uri", allow_private=False))
        words.add(refusal.value.message.replace(host, "HOST"))
    assert len(words) == 1 and "127.0.0.1" not in words.pop()
