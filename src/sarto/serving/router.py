"""Routes between generators: requests for a base of a vLLM server go there, all others to our own worker."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any

from sarto.contract.dataset_query import DatasetQuery
from sarto.schema.generation import (
    CountTokensRequest,
    CountTokensResponse,
    GenerateContentRequest,
    GenerateContentResponse,
)
from sarto.serving.generator import ComputedTokens, Generator, Target
from sarto.serving.vllm.generator import VllmGenerator


class RoutedGenerator:
    """`elsewhere` by the digest of the base. Our own worker counts tokens and computes reports for all bases."""

    def __init__(self, worker: Generator, elsewhere: Mapping[str, VllmGenerator]) -> None:
        self._worker, self._elsewhere = worker, elsewhere

    def generate(self, target: Target, request: GenerateContentRequest) -> AsyncIterator[GenerateContentResponse]:
        generator = self._elsewhere.get(target.base.digest)
        return generator.generate(target, request) if generator is not None else self._worker.generate(target, request)

    async def count_tokens(self, target: Target, request: CountTokensRequest) -> CountTokensResponse:
        return await self._worker.count_tokens(target, request)

    async def compute_tokens(self, target: Target, request: CountTokensRequest) -> ComputedTokens:
        return await self._worker.compute_tokens(target, request)

    async def data_report(self, target: Target, question: DatasetQuery) -> dict[str, Any]:
        return await self._worker.data_report(target, question)

    async def show_row(self, target: Target, question: DatasetQuery) -> dict[str, Any]:
        return await self._worker.show_row(target, question)

    async def metrics(self) -> dict[str, Any] | None:
        return await self._worker.metrics()

    async def close(self) -> None:
        """Does nothing: the generators are closed by their creator."""
