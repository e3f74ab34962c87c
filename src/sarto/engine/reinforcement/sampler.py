"""Answers sampled by the serving engine from the weights of a training in memory.

Serving borrows the decoder from the trainer for each call and gets the present values of the adapter without files. The
prompt of a group is computed once. A seed samples the same tokens in any batch.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from sarto.contract.common import BaseWeights
from sarto.engine.host_memory import free_memory_bytes
from sarto.engine.models.adapter_shape import AdapterFile
from sarto.engine.models.decoder import Decoder
from sarto.engine.models.lora import LoraAdapter
from sarto.engine.rendering.tokenizer import ChatTokenizer
from sarto.engine.serving.adapter_pool import AdapterKey, adapter_terms
from sarto.engine.serving.generation import Candidate, EngineRequest, Generation
from sarto.engine.serving.request import PreparedRequest, Sampling
from sarto.engine.serving.runner import Runner, can_be_lent
from sarto.engine.serving.sampling import SampledToken
from sarto.engine.serving.scheduler import Scheduler, SchedulerLimits
from sarto.errors import SartoError

MAX_ROWS = 64
"""Answers that are decoded side by side."""
CACHE_SHARE = 4
"""Keys and values may use this part of the free memory."""
FREELY = Sampling(temperature=1.0, top_p=1.0, top_k=0)
"""The model's own distribution, of which the trainer computes the probabilities."""
GREEDILY = Sampling(temperature=0.0, top_p=1.0, top_k=0)


@dataclass(frozen=True)
class Request:
    """A prompt, and how many answers to sample; without a seed there is one greedy answer."""

    prompt: list[int]
    max_tokens: int
    samples: int = 1
    seed: int | None = None


@dataclass
class Text:
    """One answer as it was sampled."""

    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    is_cut: bool = False
    seconds: float = 0.0
    """From the start of the call."""


class PolicySampler:
    """Samples from the values that `adapter` has at the time of a call."""

    def __init__(self, base: BaseWeights, decoder: Decoder, adapter: LoraAdapter, tokenizer: ChatTokenizer) -> None:
        self.base, self.decoder, self.adapter, self.tokenizer = base, decoder, adapter, tokenizer
        self._own: Runner | None = None
        self._calls = 0

    def answers(self, requests: Sequence[Request]) -> list[list[Text]]:
        """The answers to each request. The trainer must not compute meanwhile."""
        free = free_memory_bytes(self.decoder.device) // CACHE_SHARE
        runner = self._runner(free // 8)
        try:
            return self._answers(runner, requests, free)
        finally:
            if runner is not self._own:
                runner.give_back()

    def _runner(self, prefix_bytes: int) -> Runner:
        """Serving on the trainer's decoder; on weights of its own if that cannot be lent."""
        decoder, dtype = self.decoder, self.decoder.dtype
        if can_be_lent(decoder, self.base, dtype, decoder.device):
            return Runner(self.base, dtype, decoder.device, adapter_limit=1, prefix_bytes=prefix_bytes, lent=decoder)
        if self._own is None:
            self._own = Runner(self.base, dtype, decoder.device, adapter_limit=1, prefix_bytes=prefix_bytes)
        return self._own

    @torch.inference_mode()
    def _answers(self, runner: Runner, requests: Sequence[Request], cache_bytes: int) -> list[list[Text]]:
        self._calls += 1
        key = AdapterKey(f"call {self._calls}", "")
        tensors = {name: tensor.detach() for name, tensor in self.adapter.named_tensors()}
        terms = adapter_terms(AdapterFile(self.adapter.shape, tensors), runner.decoder, runner.products)
        scheduler = Scheduler(runner, SchedulerLimits(MAX_ROWS, max(1, cache_bytes // runner.shape.token_bytes)))
        began = time.perf_counter()
        generations = []
        for number, request in enumerate(requests, 1):
            prepared = self._prepared(request)
            engine_request = EngineRequest(
                number, prepared, None, self.tokenizer, self.base.name, key, terms, _refuse_errors
            )
            generations.append(_Recorded(engine_request, began))
            scheduler.submit(generations[-1])
        while scheduler.has_work:
            scheduler.step()
        runner.forget(frozenset({key.digest}))
        return [generation.texts for generation in generations]

    def _prepared(self, request: Request) -> PreparedRequest:
        if request.seed is None:
            sampling = GREEDILY
        else:
            sampling = Sampling(FREELY.temperature, FREELY.top_p, FREELY.top_k, seed=request.seed)
        return PreparedRequest(
            prompt=request.prompt,
            sampling=sampling,
            candidates=request.samples,
            max_tokens=request.max_tokens,
            stops=(),
            functions=frozenset(),
            grammar=None,
            end_ids=self.tokenizer.end_of_turn_ids,
        )


class _Recorded(Generation):
    """A request whose tokens are kept with their log-probabilities, and not delivered as text."""

    def __init__(self, request: EngineRequest, began: float) -> None:
        super().__init__(request)
        self.began = began
        self.texts = [Text() for _ in self.candidates]

    def take(self, candidate: Candidate, pick: SampledToken) -> None:
        text, prepared = self.texts[candidate.index], self.request.prepared
        text.tokens.append(pick.token)
        text.logprobs.append(pick.logprob)
        if pick.token in prepared.end_ids:
            candidate.finish_reason = "STOP"
        else:
            candidate.tokens += 1
            if candidate.tokens >= prepared.max_tokens:
                candidate.finish_reason, text.is_cut = "MAX_TOKENS", True
        if candidate.finish_reason:
            text.seconds = time.perf_counter() - self.began


def _refuse_errors(delivered: object) -> None:
    """The scheduler delivers errors of a request, which here has none of its own."""
    if isinstance(delivered, SartoError):
        raise delivered
