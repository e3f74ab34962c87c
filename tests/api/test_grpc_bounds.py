"""What bounds the gRPC door, which is in the service's process: each limit that docs/security.md names, tried."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

pytest.importorskip("grpc", reason="the extra sarto[grpc] is not installed")

import grpc

from sarto.api.http import grpc_bridge
from sarto.api.http.grpc_bridge import GrpcServer
from sarto.system.certificates import Certificates, local_certificates
from tests.api.http.test_grpc_places import COUNT, EXHAUSTED, channel, refused

__all__ = ["channel"]
OWN_CONNECTION = [("grpc.use_local_subchannel_pool", 1)]
Open = Callable[[], grpc.Channel]


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return local_certificates(tmp_path_factory.mktemp("tls"), ("localhost", "127.0.0.1"))


class Silent:
    """An HTTP server that takes requests and never answers; `taken` waits for one and says whether it came."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=256))
        self.address = f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def taken(self, seconds: float = 10.0) -> bool:
        self._listener.settimeout(seconds)
        try:
            self._stack.enter_context(self._listener.accept()[0])
        except TimeoutError:
            return False
        return True


@pytest.fixture
def silent() -> Iterator[Silent]:
    with ExitStack() as stack:
        yield Silent(stack)


@pytest.fixture
def door(silent: Silent, certificates: Certificates, request: pytest.FixtureRequest) -> Iterator[Open]:
    """The door before the silent server, with as many threads as the test says; opens a connection each time."""
    server = GrpcServer(silent.address, "127.0.0.1", 0, certificates, "secret", workers=request.param)
    server.start()
    trusted = grpc.ssl_channel_credentials(certificates.authority.read_bytes())
    with ExitStack() as stack:
        stack.callback(server.stop)
        yield lambda: stack.enter_context(
            grpc.secure_channel(f"localhost:{server.port}", trusted, options=OWN_CONNECTION)
        )


def ask(channel: grpc.Channel, caller: str) -> grpc.Future:
    return channel.unary_unary(COUNT).future(b"", timeout=60, metadata=[("authorization", caller)])


def test_a_message_is_as_long_as_four_mebibytes(channel: grpc.Channel) -> None:
    call = channel.unary_unary(COUNT)
    assert refused(call.future(bytes((4 << 20) + 1), metadata=[("authorization", "good")]))[0] == EXHAUSTED


def test_metadata_is_as_long_as_32_kibibytes(channel: grpc.Channel) -> None:
    call = channel.unary_unary(COUNT)
    code, _ = refused(call.future(b"", metadata=[("authorization", "good"), ("x-more", "a" * 100_000)]))
    assert code in (EXHAUSTED, grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INTERNAL)


@pytest.mark.parametrize("door", [100], indirect=True)
def test_a_connection_has_64_calls_at_once_and_others_have_theirs(door: Open, silent: Silent) -> None:
    crowd = door()
    held = [ask(crowd, str(number)) for number in range(80)]
    assert all(silent.taken() for _ in range(64))
    assert not silent.taken(0.5), "the 65th waits for one of them to end"
    other = ask(door(), "other")
    assert silent.taken() and not other.done()
    for one in (*held, other):
        one.cancel()


@pytest.mark.parametrize("door", [4], indirect=True)
def test_of_all_connections_twice_as_many_calls_as_threads_run_or_wait(door: Open, silent: Silent) -> None:
    held = [ask(door(), str(number)) for number in range(4)]
    assert all(silent.taken() for _ in range(4))
    crowd = door()
    held += [ask(crowd, f"more-{number}") for number in range(6)]
    codes, all_known = [], threading.Event()

    def note(one: grpc.Future) -> None:
        codes.append(one.code())
        if len(codes) == 2:
            all_known.set()

    for one in held[4:]:
        one.add_done_callback(note)
    assert all_known.wait(10) and codes == [EXHAUSTED, EXHAUSTED]
    assert sum(one.done() for one in held) == 2
    for one in held:
        one.cancel()


def test_a_connection_that_says_nothing_is_closed(
    tmp_path: Path, silent: Silent, certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = dict(grpc_bridge.OPTIONS)
    assert named["grpc.server_handshake_timeout_ms"] == 10_000
    monkeypatch.setattr(grpc_bridge, "OPTIONS", tuple((named | {"grpc.server_handshake_timeout_ms": 300}).items()))
    server = GrpcServer(silent.address, "127.0.0.1", 0, certificates, "secret", workers=4)
    server.start()
    try:
        with socket.create_connection(("127.0.0.1", server.port), 10) as dumb:
            assert dumb.recv(1) == b""
    finally:
        server.stop()
