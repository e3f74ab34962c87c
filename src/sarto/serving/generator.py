"""The protocol of generation: a `Target` (base and adapter) and a `Generator`.

Handlers call it; `worker.client` and `vllm.generator` implement it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Protocol

from sarto.contract.common import BaseWeights
from sarto.contract.dataset_query import DatasetQuery
from sarto.names import asker
from sarto.schema.generation import (
    CountTokensRequest,
    CountTokensResponse,
    GenerateContentRequest,
    GenerateContentResponse,
    append_chunk,
)


@dataclass(frozen=True)
class Target:
    """Base weights and, for a tuned model, the folder of its PEFT adapter with the digest of its bytes."""

    base: BaseWeights
    adapter_folder: str = ""
    adapter_digest: str = ""
    tenant: str = ""
    """Owner of the cached prompts that the request may use and adds to."""

    @property
    def asker(self) -> str:
        return asker(self.tenant)


@dataclass(frozen=True)
class ComputedTokens:
    """The tokens of a prompt: ids, and the text of each."""

    ids: list[int]
    texts: list[str]


class Generator(Protocol):
    def generate(self, target: Target, request: GenerateContentRequest) -> AsyncIterator[GenerateContentResponse]:
        """Yield chunks as they are produced; the last has usageMetadata, each candidate's last its finishReason.

        Closing the iterator (`aclose`) cancels. Raises InvalidArgument for unsupported options, ResourceExhausted when
        the queue is full, Unavailable when the worker died."""
        ...

    async def count_tokens(self, target: Target, request: CountTokensRequest) -> CountTokensResponse: ...

    async def compute_tokens(self, target: Target, request: CountTokensRequest) -> ComputedTokens: ...

    async def data_report(self, target: Target, question: DatasetQuery) -> dict[str, Any]:
        """The report on a dataset, as the API returns it."""
        ...

    async def show_row(self, target: Target, question: DatasetQuery) -> dict[str, Any]:
        """Row `question.row` with its tokens and loss mask, as the API returns it."""
        ...

    async def metrics(self) -> dict[str, Any] | None:
        """Objects in memory and running requests; None while no worker runs, which this call does not start."""
        ...

    async def close(self) -> None: ...


async def collect(chunks: AsyncIterator[GenerateContentResponse]) -> GenerateContentResponse:
    """The whole response of a stream of chunks, in the form of `generateContent`."""
    whole = GenerateContentResponse()
    async for chunk in chunks:
        append_chunk(whole, chunk)
    return whole
