"""A gRPC call holds a thread of the bridge while it is answered: one caller does not hold them all."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

pytest.importorskip("grpc", reason="the extra sarto[grpc] is not installed")

import grpc
from google.longrunning import operations_pb2

from sarto.api.http import grpc_bridge
from sarto.api.http.grpc_bridge import GrpcServer
from sarto.system.certificates import local_certificates
from tests.served import served

UNAUTHENTICATED, EXHAUSTED = grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.RESOURCE_EXHAUSTED
WAIT = "/google.longrunning.Operations/WaitOperation"


def test_a_caller_who_waits_in_a_quarter_of_the_threads_is_refused_by_name(tmp_path: Path) -> None:
    certificates = local_certificates(tmp_path, ("localhost", "127.0.0.1"))
    with socket.socket() as silent, ExitStack() as silents:  # takes requests and never answers
        silent.bind(("127.0.0.1", 0))
        silent.listen(16)
        server = GrpcServer(
            f"http://127.0.0.1:{silent.getsockname()[1]}", "127.0.0.1", 0, certificates, "secret", workers=12
        )
        server.start()
        trusted = grpc.ssl_channel_credentials(certificates.authority.read_bytes())
        try:
            with grpc.secure_channel(f"localhost:{server.port}", trusted) as channel:
                call = channel.unary_unary(
                    WAIT,
                    operations_pb2.WaitOperationRequest.SerializeToString,
                    operations_pb2.Operation.FromString,
                )
                request = operations_pb2.WaitOperationRequest(name="projects/p/locations/us-central1/operations/1")

                def wait(caller: str) -> grpc.Future:
                    return call.future(request, timeout=30, metadata=[("authorization", caller)])

                held = []
                for _ in range(3):
                    held.append(wait("ada"))
                    silents.enter_context(silent.accept()[0])  # it has its thread now
                with pytest.raises(grpc.RpcError) as caught:
                    wait("ada").result()
                assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
                assert "3 for each caller" in caught.value.details()
                other = wait("bob")
                silents.enter_context(silent.accept()[0])
                assert not other.done()
                for one in [*held, other]:
                    one.cancel()
        finally:
            server.stop()


COUNT = "/google.cloud.aiplatform.v1.LlmUtilityService/CountTokens"
LIST = "/google.cloud.aiplatform.v1.GenAiTuningService/ListTuningJobs"


class Answering(BaseHTTPRequestHandler):
    """Knows whoever has a token that ends in `good`."""

    def do_GET(self) -> None:
        is_known = self.headers.get("authorization", "").endswith("good")
        body = b"{}" if is_known else b'{"error": {"status": "UNAUTHENTICATED", "message": "who?"}}'
        self.send_response(200 if is_known else 401)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nobody reads it."""


@pytest.fixture
def channel(tmp_path: Path) -> Iterator[grpc.Channel]:
    certificates = local_certificates(tmp_path, ("localhost", "127.0.0.1"))
    http = ThreadingHTTPServer(("127.0.0.1", 0), Answering)
    with served(http) as address:
        server = GrpcServer(address, "127.0.0.1", 0, certificates, "secret", workers=4)
        server.start()
        trusted = grpc.ssl_channel_credentials(certificates.authority.read_bytes())
        try:
            with grpc.secure_channel(f"localhost:{server.port}", trusted) as made:
                yield made
        finally:
            server.stop()


def refused(call: grpc.Future) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as caught:
        call.result(30)
    return caught.value.code(), caught.value.details()


def test_calls_without_a_good_token_or_without_an_end_hold_no_threads(
    channel: grpc.Channel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grpc_bridge, "MESSAGE_SECONDS", 2.0)
    call, never = channel.stream_unary(COUNT), threading.Event()

    def half(token: str) -> grpc.Future:
        return call.future(iter(never.wait, True), metadata=[("authorization", token)] if token else None)

    try:
        strangers = [half("") for _ in range(2)] + [half(f"Bearer {number}") for number in range(2)]
        assert {refused(one)[0] for one in strangers} <= {UNAUTHENTICATED, EXHAUSTED}
        late = [half(f"{number} good") for number in range(4)]
        assert {refused(one)[0] for one in late} == {grpc.StatusCode.CANCELLED}
    finally:
        never.set()


def test_a_request_of_very_many_values_is_refused_before_it_becomes_json(channel: grpc.Channel) -> None:
    contents = b"\x22\x00" * 1_000_000
    asked = channel.unary_unary(COUNT).future(contents, metadata=[("authorization", "good")])
    code, words = refused(asked)
    assert code == grpc.StatusCode.INVALID_ARGUMENT and "more than 100000 values" in words


@pytest.mark.parametrize(
    ("method", "sent", "words"),
    [(COUNT, b"\xff" * 100, "no message of this method"), (LIST, b"", "names no resource of the form /v1/{parent=")],
    ids=["broken", "without a name"],
)
def test_a_request_that_is_none_is_its_callers_fault(
    channel: grpc.Channel, method: str, sent: bytes, words: str
) -> None:
    code, told = refused(channel.unary_unary(method).future(sent, metadata=[("authorization", "good")]))
    assert code == grpc.StatusCode.INVALID_ARGUMENT and words in told
