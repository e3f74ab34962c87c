"""gRPC to REST: one generic bridge over the REST handlers, with TLS. An extra (`pip install sarto[grpc]`).

RPCs, message types and HTTP rules are read from the official client library's own transports, so no method is
implemented twice. A call is transcoded to its REST form and sent to this server's HTTP address with the caller's
credentials. The JSON response is parsed into the RPC's response type.
"""

from __future__ import annotations

import importlib
import json
import logging
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cache, partial
from typing import Any
from urllib.parse import unquote

import grpc
import httpx
from google.api_core import path_template
from google.longrunning import operations_pb2
from google.protobuf import empty_pb2, json_format, unknown_fields
from google.protobuf.message import DecodeError
from google.rpc import status_pb2

from sarto.api.http.callers import BRIDGE_HEADER
from sarto.schema.json_size import MOST_VALUES
from sarto.system.certificates import Certificates

logger = logging.getLogger(__name__)
Held = Callable[[grpc.ServicerContext], AbstractContextManager[None]]

MESSAGE_SECONDS = 20.0
"""Longest time in which a call may send its request."""
KNOWN_SECONDS, MOST_KNOWN = 60.0, 10_000
MOST_FORMS = 3
"""Most resource name patterns in an error."""
OPTIONS = (
    ("grpc.max_receive_message_length", 4 << 20),
    ("grpc.max_metadata_size", 32 << 10),
    ("grpc.max_concurrent_streams", 64),
    ("grpc.server_handshake_timeout_ms", 10_000),
    ("grpc.max_connection_idle_ms", 300_000),
    ("grpc.keepalive_time_ms", 60_000),
)
"""Options of every connection. An idle one is closed; clients open another by themselves."""
UNKNOWN_FIELD = (
    "The request has {}, which the messages of this server do not have. Over gRPC they carry supervised tuning and the "
    "older form of distillation; send preferenceOptimizationSpec and reinforcementTuningSpec over REST."
)
VERSIONS = ("v1", "v1beta1")
SERVICES = (
    "gen_ai_tuning_service", "model_service", "endpoint_service", "prediction_service", "llm_utility_service",
    "job_service", "metadata_service", "tensorboard_service", "model_garden_service",
)  # fmt: skip
OPERATION_RULES: dict[str, tuple[type[Any], type[Any], str, str]] = {
    "GetOperation": (operations_pb2.GetOperationRequest, operations_pb2.Operation, "get", ""),
    "WaitOperation": (operations_pb2.WaitOperationRequest, operations_pb2.Operation, "post", ":wait"),
    "CancelOperation": (operations_pb2.CancelOperationRequest, empty_pb2.Empty, "post", ":cancel"),
    "DeleteOperation": (operations_pb2.DeleteOperationRequest, empty_pb2.Empty, "delete", ""),
    "ListOperations": (
        operations_pb2.ListOperationsRequest,
        operations_pb2.ListOperationsResponse,
        "get",
        "/operations",
    ),
}


@dataclass(frozen=True)
class Rpc:
    """One method: its protobuf classes and its HTTP rules."""

    request: type[Any]
    response: type[Any]
    rules: list[dict[str, str]]
    is_stream: bool


class _Recorder(grpc.Channel):  # type: ignore[misc]
    """A channel that is never connected: it records the calls of a transport's constructor."""

    def __init__(self) -> None:
        self.calls: dict[str, tuple[Any, Any, bool]] = {}
        self.inner = grpc.insecure_channel("127.0.0.1:1")

    def unary_unary(
        self, method: str, request_serializer: Any = None, response_deserializer: Any = None, *_: Any, **__: Any
    ) -> Any:
        self.calls[method] = (request_serializer, response_deserializer, False)
        return self.inner.unary_unary(method)

    def unary_stream(
        self, method: str, request_serializer: Any = None, response_deserializer: Any = None, *_: Any, **__: Any
    ) -> Any:
        self.calls[method] = (request_serializer, response_deserializer, True)
        return self.inner.unary_stream(method)

    def stream_unary(self, method: str, *_: Any, **__: Any) -> Any:
        return self.inner.stream_unary(method)

    def stream_stream(self, method: str, *_: Any, **__: Any) -> Any:
        return self.inner.stream_stream(method)

    def subscribe(self, callback: Any, try_to_connect: bool = False) -> None: ...

    def unsubscribe(self, callback: Any) -> None: ...

    def close(self) -> None:
        self.inner.close()


def _service_rpcs(version: str, service: str) -> Iterator[tuple[str, Rpc]]:
    package = f"google.cloud.aiplatform_{version}.services.{service}.transports"
    transports = importlib.import_module(package)
    base = importlib.import_module(f"{package}.rest_base")
    name = next(n for n in dir(transports) if n.endswith("GrpcTransport"))
    rest = getattr(base, "_Base" + name.removesuffix("GrpcTransport") + "RestTransport")
    channel = _Recorder()
    transport_class = getattr(transports, name)
    transport = transport_class(channel=channel)
    transport._logged_channel = channel  # its logging wrapper opens calls lazily, past our notebook
    transport._stubs.clear()
    for attribute, value in vars(transport_class).items():
        if (
            isinstance(value, property)
            and not attribute.startswith("_")
            and attribute not in ("kind", "operations_client")
        ):
            getattr(transport, attribute)
    channel.close()
    for method, (serializer, deserializer, is_stream) in channel.calls.items():
        rule = getattr(rest, "_Base" + method.rpartition("/")[2], None)
        if rule is not None and hasattr(serializer, "__self__"):
            request, response = serializer.__self__, deserializer.__self__
            message = response.pb() if hasattr(response, "pb") else response  # operations come as plain protobuf
            yield method, Rpc(request.pb(), message, rule._get_http_options(), is_stream)


@cache
def table() -> dict[str, Rpc]:
    """Every RPC of the services that clients of the tuning API use, by its gRPC path."""
    methods = {
        method: rpc for version in VERSIONS for service in SERVICES for method, rpc in _service_rpcs(version, service)
    }
    for name, (request, response, verb, suffix) in OPERATION_RULES.items():
        pattern = "projects/*/locations/*" if name == "ListOperations" else "projects/*/locations/*/operations/*"
        rules = [{"method": verb, "uri": f"/v1/{{name={pattern}}}{suffix}"}]
        methods[f"/google.longrunning.Operations/{name}"] = Rpc(request, response, rules, False)
    return methods


class _CallerThreads:
    """Threads of the bridge held by calls: a caller has at most a quarter of them, and waits (`WaitOperation`) at most
    half."""

    def __init__(self, workers: int) -> None:
        self._each, self._waits = max(1, workers // 4), max(1, workers // 2)
        self._held: Counter[str] = Counter()
        self._lock = threading.Lock()

    @contextmanager
    def place(self, context: grpc.ServicerContext, *, is_wait: bool) -> Iterator[None]:
        """Take a thread; ends the call with RESOURCE_EXHAUSTED if there is none."""
        caller = _credentials(context) or context.peer()
        shares = [(caller, self._each), *([("waits", self._waits)] if is_wait else [])]
        with self._lock:
            is_free = all(self._held[name] < most for name, most in shares)
            if is_free:
                self._held.update(name for name, _ in shares)
        if not is_free:
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, f"Too many calls at once: {self._each} for each caller.")
        try:
            yield
        finally:
            with self._lock:
                self._held.subtract(name for name, _ in shares)
                self._held += Counter()  # drops callers without threads


def _credentials(context: grpc.ServicerContext) -> str:
    return next((str(value) for name, value in context.invocation_metadata() if name == "authorization"), "")


def _has_more(message: Any, most: int) -> bool:
    """Whether a protobuf message has more than this number of fields and elements, at any depth."""
    count, waiting = 0, [message]
    while waiting:
        for field, value in waiting.pop().ListFields():
            values = (value.values() if hasattr(value, "values") else value) if hasattr(value, "__len__") else (value,)
            if isinstance(value, str | bytes):
                values = (value,)
            count += len(values)
            if count > most:
                return True
            if field.message_type is not None:
                waiting += [one for one in values if hasattr(one, "ListFields")]
    return False


def _unknown(message: Any) -> str:
    """The first field, at any depth, that the message's type does not have; empty if there is none."""
    waiting = [message]
    while waiting:
        each = waiting.pop()
        for found in unknown_fields.UnknownFieldSet(each):
            return f"field {found.field_number} of {each.DESCRIPTOR.full_name}"
        for field, value in each.ListFields():
            if field.message_type is not None:
                values = (
                    (value.values() if hasattr(value, "values") else value) if hasattr(value, "__len__") else [value]
                )
                waiting += [one for one in values if hasattr(one, "ListFields")]
    return ""


class _Bridge(grpc.GenericRpcHandler):  # type: ignore[misc]
    def __init__(self, client: httpx.Client, secret: str, workers: int) -> None:
        self.client, self.secret = client, secret
        self._places = _CallerThreads(workers)
        self._known: dict[str, float] = {}
        """Valid credentials, and the time until which they are not checked again."""

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        rpc = table().get(details.method)
        if rpc is None:
            return None
        # For request streams, since handlers of single requests read the request before the caller is authenticated.
        make = grpc.stream_stream_rpc_method_handler if rpc.is_stream else grpc.stream_unary_rpc_method_handler
        held = partial(self._places.place, is_wait=details.method.endswith("/WaitOperation"))
        call: Callable[..., Any] = partial(self._stream if rpc.is_stream else self._unary, held)
        return make(
            lambda requests, context: call(rpc, requests, context),
            request_deserializer=bytes,  # `_read` parses it, so that an invalid request is the client's error
            response_serializer=rpc.response.SerializeToString,
        )

    def _request(self, rpc: Rpc, request: Any, context: grpc.ServicerContext) -> httpx.Request:
        try:
            sent = path_template.transcode(rpc.rules, request)  # type: ignore[no-untyped-call]
        except ValueError:
            forms = " or ".join(rule["uri"] for rule in rpc.rules[:MOST_FORMS])
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"The request names no resource of the form {forms}.")
        query: dict[str, Any] = {}
        if "query_params" in sent:
            query = json_format.MessageToDict(sent["query_params"], use_integers_for_enums=True)
        if rpc.is_stream:
            query["alt"] = "sse"
        body = json_format.MessageToJson(sent["body"], indent=None) if sent.get("body") is not None else None
        headers = {"content-type": "application/json"} | self._sender(context)
        headers |= {k: v for k, v in context.invocation_metadata() if k in ("authorization", "x-goog-user-project")}
        return self.client.build_request(
            sent["method"].upper(), sent["uri"], params=query, content=body, headers=headers
        )

    def _sender(self, context: grpc.ServicerContext) -> dict[str, str]:
        caller = _caller(context.peer())
        return {BRIDGE_HEADER.decode(): f"{self.secret} {caller}"} if caller else {}

    def _read(self, rpc: Rpc, requests: Iterator[bytes], context: grpc.ServicerContext) -> Any:
        """The single request of a call, read after its caller is authenticated. Ends the call if the caller is unknown,
        or if the request is late, invalid, or has more values than an HTTP body may have."""
        self._ask_who(context)
        late = threading.Timer(MESSAGE_SECONDS, context.cancel)
        late.daemon = True
        late.start()
        try:
            message = next(requests, None)
        finally:
            late.cancel()
        if message is None:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "The call has no request.")
        try:
            request = rpc.request.FromString(message)
        except DecodeError:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "The request is no message of this method's kind.")
        if _has_more(request, MOST_VALUES):
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"The request has more than {MOST_VALUES} values.")
        if unknown := _unknown(request):
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, UNKNOWN_FIELD.format(unknown))
        return request

    def _ask_who(self, context: grpc.ServicerContext) -> None:
        credentials = _credentials(context)
        if credentials and self._known.get(credentials, 0.0) > time.monotonic():
            return
        headers = self._sender(context) | ({"authorization": credentials} if credentials else {})
        answer = self.client.get("/v3/projects?pageSize=1", headers=headers)
        if answer.status_code == 401:
            _abort(answer, context)
        if credentials:
            if len(self._known) >= MOST_KNOWN:
                self._known.clear()
            self._known[credentials] = time.monotonic() + KNOWN_SECONDS

    def _unary(self, held: Held, rpc: Rpc, requests: Iterator[Any], context: grpc.ServicerContext) -> Any:
        with held(context):
            answer = self.client.send(self._request(rpc, self._read(rpc, requests, context), context))
        if answer.is_error:
            _abort(answer, context)
        return json_format.ParseDict(answer.json(), rpc.response(), ignore_unknown_fields=True)

    def _stream(self, held: Held, rpc: Rpc, requests: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Any]:
        with held(context):
            yield from self._streamed(rpc, self._read(rpc, requests, context), context)

    def _streamed(self, rpc: Rpc, request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        answer = self.client.send(self._request(rpc, request, context), stream=True)
        try:
            context.add_callback(answer.close)  # a caller that goes away ends the generation
            if answer.is_error:
                answer.read()
                _abort(answer, context)
            for line in answer.iter_lines():
                if line.startswith("data: "):
                    chunk = json.loads(line.removeprefix("data: "))
                    yield json_format.ParseDict(chunk, rpc.response(), ignore_unknown_fields=True)
        finally:
            answer.close()


def _caller(peer: str) -> str:
    """The address in `ipv4:ADDRESS:PORT` or `ipv6:[ADDRESS]:PORT`; empty for another kind of peer."""
    kind, _, address = unquote(peer).partition(":")
    return address.rpartition(":")[0].strip("[]") if kind in ("ipv4", "ipv6") else ""


def _abort(answer: httpx.Response, context: grpc.ServicerContext) -> None:
    """End the call with the error's own code, message and details."""
    error = answer.json().get("error", {})
    code = getattr(grpc.StatusCode, error.get("status", ""), grpc.StatusCode.UNKNOWN)
    message = error.get("message", f"HTTP {answer.status_code}")
    status = status_pb2.Status(code=code.value[0], message=message)
    for detail in error.get("details", ()):
        json_format.ParseDict(detail, status.details.add())
    context.set_trailing_metadata((("grpc-status-details-bin", status.SerializeToString()),))
    context.abort(code, message)


class GrpcServer:
    """Listens on `port` (0 takes a free one; `port` is then its number) and forwards to the HTTP server at
    `base_url`."""

    def __init__(
        self,
        base_url: str,
        host: str,
        port: int,
        certificates: Certificates,
        secret: str,
        trusted: ssl.SSLContext | bool = True,
        workers: int = 64,
    ) -> None:
        """`secret` identifies calls of this bridge to the HTTP server; `trusted` verifies that server if it uses
        TLS."""
        self.client = httpx.Client(base_url=base_url, timeout=None, trust_env=False, verify=trusted)
        self.server = grpc.server(
            ThreadPoolExecutor(workers, "grpc"),
            handlers=[_Bridge(self.client, secret, workers)],
            options=OPTIONS,
            maximum_concurrent_rpcs=2 * workers,
        )
        pair = (certificates.key.read_bytes(), certificates.certificate.read_bytes())
        self.port: int = self.server.add_secure_port(
            f"[{host}]:{port}" if ":" in host else f"{host}:{port}", grpc.ssl_server_credentials([pair])
        )

    def start(self) -> None:
        self.server.start()
        logger.info("grpc started", extra={"port": self.port})

    def stop(self) -> None:
        self.server.stop(grace=0).wait()
        self.client.close()
