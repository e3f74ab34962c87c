"""The seam to whoever computes metrics (`engine/evaluation`), since the doors know no engine."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol

from sarto.schema.evaluation_service import EvaluateInstancesRequest, EvaluateInstancesResponse
from sarto.schema.generation import GenerateContentRequest, GenerateContentResponse

Generate = Callable[[GenerateContentRequest], Awaitable[GenerateContentResponse]]


class Evaluator(Protocol):
    """Whoever computes metrics; the doors know no engine."""

    def judges(self, asked: EvaluateInstancesRequest) -> frozenset[str]:
        """Names of the models that must judge. Raises InvalidArgument, Unimplemented for what cannot be scored."""
        ...

    async def scores(
        self, asked: EvaluateInstancesRequest, judges: Mapping[str, Generate]
    ) -> EvaluateInstancesResponse: ...
