"""Several generators as one: a base that a vLLM server serves is answered there, everything else by our own worker."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any

from sarto.schema.generation import (
    CountTokensRequest,
    CountTokensResponse,
    GenerateContentRequest,
    GenerateContentResponse,
)
from sarto.serving.generator import Generator, Target
from sarto.serving.vllm import VllmGenerator


class RoutedGenerator:
    """`elsewhere` by the digest of the base. Counting, reports and the like are the worker's for all."""

    def __init__(self, worker: Generator, elsewhere: Mapping[str, VllmGenerator]) -> None:
        self._worker, self._elsewhere = worker, elsewhere

    def generate(self, target: Target, request: GenerateContentRequest) -> AsyncIterator[GenerateContentResponse]:
        found = self._elsewhere.get(target.base.digest)
        return found.generate(target, request) if found is not None else self._worker.generate(target, request)

    async def count_tokens(self, target: Target, request: CountTokensRequest) -> CountTokensResponse:
        return await self._worker.count_tokens(target, request)

    async def inspect(self, target: Target | None, method: str, payload: dict[str, Any]) -> dict[str, Any]:
        return await self._worker.inspect(target, method, payload)

    async def metrics(self) -> dict[str, Any] | None:
        return await self._worker.metrics()

    async def close(self) -> None:
        """Whoever made them closes them, one by one."""
