"""The protocol between HTTP handlers and the computation of metrics (`engine/evaluation`)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol, TypeVar

from sarto.schema.evaluation_requests import EvaluateInstancesRequest, EvaluateInstancesResponse
from sarto.schema.generation import GenerateContentRequest, GenerateContentResponse

Generate = Callable[[GenerateContentRequest], Awaitable[GenerateContentResponse]]


class PreparedQuery(Protocol):
    """A parsed request."""

    @property
    def judges(self) -> frozenset[str]:
        """Names of the required judges."""
        ...


R = TypeVar("R", bound=PreparedQuery)


class Evaluator(Protocol[R]):
    """The computation of metrics, by a protocol, since the API does not import the engine."""

    def read(self, request: EvaluateInstancesRequest) -> R:
        """Parse a request. Raises InvalidArgument, and Unimplemented for metrics that Sarto does not compute. Call it
        outside the event loop."""
        ...

    async def scores(self, read: R, judges: Mapping[str, Generate], project: str) -> EvaluateInstancesResponse:
        """Compute the scores. `project` is the number of the caller's project; projects take turns."""
        ...
