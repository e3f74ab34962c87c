"""gRPC in, REST out: one generic bridge over the REST handlers, with TLS. An extra (`pip install sarto[grpc]`).

Which RPCs exist, their message types and their HTTP rules are read from the official client library's own transports,
so there is no second implementation of anything: a call is transcoded to its REST form, sent to this server's HTTP
address with the caller's credentials, and the JSON answer is parsed into the RPC's response type.
"""

from __future__ import annotations

import importlib
import json
import logging
import ssl
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import Any

import grpc
import httpx
from google.api_core import path_template
from google.longrunning import operations_pb2
from google.protobuf import empty_pb2, json_format
from google.rpc import status_pb2

from sarto.certificates import Certificates

logger = logging.getLogger(__name__)

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
    """One method: its protobuf classes and the HTTP rules it may be sent by."""

    request: type[Any]
    response: type[Any]
    rules: list[dict[str, str]]
    is_stream: bool


class _Recorder(grpc.Channel):  # type: ignore[misc]
    """A channel that is never connected: it notes what a transport would call."""

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
    """Every RPC of the services the clients of the tuning API use, by its gRPC path."""
    found = {
        method: rpc for version in VERSIONS for service in SERVICES for method, rpc in _service_rpcs(version, service)
    }
    for name, (request, response, verb, suffix) in OPERATION_RULES.items():
        pattern = "projects/*/locations/*" if name == "ListOperations" else "projects/*/locations/*/operations/*"
        rules = [{"method": verb, "uri": f"/v1/{{name={pattern}}}{suffix}"}]
        found[f"/google.longrunning.Operations/{name}"] = Rpc(request, response, rules, False)
    return found


class _Bridge(grpc.GenericRpcHandler):  # type: ignore[misc]
    def __init__(self, client: httpx.Client) -> None:
        self.client = client

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        rpc = table().get(details.method)
        if rpc is None:
            return None
        make = grpc.unary_stream_rpc_method_handler if rpc.is_stream else grpc.unary_unary_rpc_method_handler
        call: Callable[..., Any] = self._stream if rpc.is_stream else self._unary
        return make(
            lambda request, context: call(rpc, request, context),
            request_deserializer=rpc.request.FromString,
            response_serializer=rpc.response.SerializeToString,
        )

    def _request(self, rpc: Rpc, request: Any, context: grpc.ServicerContext) -> httpx.Request:
        sent = path_template.transcode(rpc.rules, request)  # type: ignore[no-untyped-call]
        query: dict[str, Any] = {}
        if "query_params" in sent:
            query = json_format.MessageToDict(sent["query_params"], use_integers_for_enums=True)
        if rpc.is_stream:
            query["alt"] = "sse"
        body = json_format.MessageToJson(sent["body"], indent=None) if sent.get("body") is not None else None
        headers = {"content-type": "application/json"}
        headers |= {k: v for k, v in context.invocation_metadata() if k in ("authorization", "x-goog-user-project")}
        return self.client.build_request(
            sent["method"].upper(), sent["uri"], params=query, content=body, headers=headers
        )

    def _unary(self, rpc: Rpc, request: Any, context: grpc.ServicerContext) -> Any:
        answer = self.client.send(self._request(rpc, request, context))
        if answer.is_error:
            _abort(answer, context)
        return json_format.ParseDict(answer.json(), rpc.response(), ignore_unknown_fields=True)

    def _stream(self, rpc: Rpc, request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
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
    """Listens on `port` (0 takes a free one; `port` then says which) and forwards to the HTTP server at `base_url`."""

    def __init__(
        self,
        base_url: str,
        host: str,
        port: int,
        certificates: Certificates,
        trusted: ssl.SSLContext | bool = True,
        workers: int = 32,
    ) -> None:
        """`trusted` verifies the HTTP server where it speaks TLS."""
        self.client = httpx.Client(base_url=base_url, timeout=None, trust_env=False, verify=trusted)
        self.server = grpc.server(ThreadPoolExecutor(workers, "grpc"), handlers=[_Bridge(self.client)])
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
