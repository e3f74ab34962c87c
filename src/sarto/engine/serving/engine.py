"""The serving engine: one thread owns the models and computes; everyone else hands in requests and gets chunks back.

Knows bases, adapters and tokens, no HTTP and no users. The generation worker makes one; evaluation may too.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch

from sarto.engine.data.tokenizer import ChatTokenizer
from sarto.engine.families.decoder import Decoder
from sarto.engine.families.load import read_config
from sarto.engine.ops.choose import native_dtype
from sarto.engine.pages import return_pages
from sarto.engine.serving.adapters import AdapterKey
from sarto.engine.serving.constraints import GrammarTokens
from sarto.engine.serving.generation import Deliver, Generation, Order
from sarto.engine.serving.memory import available_bytes
from sarto.engine.serving.request import read_request
from sarto.engine.serving.runner import Runner, can_be_lent
from sarto.engine.serving.scheduler import Limits, Scheduler
from sarto.errors import RETRY_INFO, Internal, ResourceExhausted, SartoError, Unavailable
from sarto.schema.generation import GenerateContentRequest
from sarto.schema.runs import BaseWeights

logger = logging.getLogger(__name__)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.bfloat16}
"""By the names of `EngineOptions.dtype`; in int8 only weights are, all else is bfloat16."""

RETURN_SECONDS = 20.0
"""How often the holes that answers leave in the heap are given back. Not without answers: in a run that evaluates,
training keeps what it frees."""


@dataclass(frozen=True)
class EngineOptions:
    """`threads` 0: all cores. `cache_bytes` 0: a quarter of the memory that is free when the base is loaded."""

    threads: int = 0
    device: str = "auto"
    dtype: str = "auto"
    queue_limit: int = 256
    max_rows: int = 64
    max_adapters: int = 64
    max_bases: int = 3
    cache_bytes: int = 0


class _Base:
    """Everything about one base that is in memory. `lock` guards its making; the scheduler belongs to the thread."""

    def __init__(
        self,
        base: BaseWeights,
        tokenizer: ChatTokenizer,
        grammars: GrammarTokens,
        device: torch.device,
        dtype: torch.dtype,
        options: EngineOptions,
        lent: Decoder | None = None,
    ) -> None:
        free = available_bytes()
        cache_bytes = options.cache_bytes or free // 4
        self.name = base.name
        self.tokenizer, self.grammars = tokenizer, grammars
        self.runner = Runner(
            base,
            dtype,
            device,
            adapter_limit=options.max_adapters,
            adapter_bytes=free // 8,
            prefix_bytes=cache_bytes // 8,
            int8=options.dtype == "int8",
            lent=lent,
        )
        self.context = self.runner.config.context
        self.scheduler = Scheduler(
            self.runner, Limits(options.max_rows, max(1, cache_bytes // self.runner.shape.token_bytes))
        )


class Engine:
    """`submit` and `cancel` may be called from any thread; `deliver` is called on the engine's own."""

    def __init__(self, options: EngineOptions) -> None:
        self.options = options
        self.device = torch.device(options.device if options.device != "auto" else _best_device())
        self.dtype = native_dtype(self.device) if options.dtype == "auto" else DTYPES[options.dtype]
        torch.set_num_threads(options.threads or len(os.sched_getaffinity(0)))
        self._bases: OrderedDict[str, _Base] = OrderedDict()
        self._lent: dict[str, _Base] = {}
        self._loading = threading.Lock()
        self._tokenizers: dict[str, ChatTokenizer] = {}
        self._grammars: dict[str, GrammarTokens] = {}
        self._reading = threading.Lock()
        self._wake = threading.Condition()
        self._inbox: list[Callable[[], object]] = []
        self._is_closed = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def submit(
        self, number: int, base: BaseWeights, key: AdapterKey | None, request: GenerateContentRequest, deliver: Deliver
    ) -> None:
        """Queue a request under a number of the caller's. Raises what `read_request` raises, and ResourceExhausted."""
        if self.waiting >= self.options.queue_limit:
            raise _overloaded(self.options.queue_limit)
        home = self.base(base)
        wanted = read_request(request, home.tokenizer, home.context, home.grammars)
        staged = home.runner.adapters.read(key) if key is not None and key not in home.runner.adapters else None
        order = Order(number, wanted, home.tokenizer, home.name, key, staged, deliver)
        generation = Generation(order)

        def start() -> None:
            self._bases[base.digest] = home  # it may have been evicted in between
            home.scheduler.submit(generation)

        self._do(start)

    def cancel(self, number: int) -> None:
        """Forget a request; nothing more is delivered for it. A number unknown or at its end is fine."""
        self._do(lambda: any(base.scheduler.cancel(number) for base in list(self._bases.values())))

    def forget_adapters(self, digests: Iterable[str]) -> None:
        """Drop adapters from memory, those in use when their last sequence ends, and with them every kept prompt."""
        wanted = frozenset(digests)

        def forget() -> None:
            for base in self._bases.values():
                base.runner.forget(wanted)

        self._do(forget)

    def lend(self, base: BaseWeights, decoder: Decoder) -> None:
        """Answer for a base with a decoder that is in memory already, and that nobody else uses until `give_back`. One
        that cannot be lent is not taken: the base is loaded as any other."""
        if can_be_lent(decoder, base, self.dtype, self.device) and self.options.dtype != "int8":
            with self._loading:
                lent = self._load(base, decoder)
                self._lent[base.digest] = self._bases[base.digest] = lent

    def give_back(self, base: BaseWeights) -> None:
        """Return what was lent, its requests ended. Safe to call for what was not."""
        lent = self._lent.pop(base.digest, None)
        if lent is None:
            return
        ended = threading.Event()

        def end() -> None:
            if self._bases.get(base.digest) is lent:
                del self._bases[base.digest]
            lent.scheduler.fail_all(Unavailable("The base is not served here any more."))
            ended.set()

        self._do(end)
        while not ended.wait(1.0) and self._thread.is_alive():
            pass
        lent.runner.give_back()

    def base(self, base: BaseWeights) -> _Base:
        """The base in memory, loaded on first use; the least used idle one makes room."""
        with self._loading:
            found = self._bases.get(base.digest)
            if found is None:
                began = time.perf_counter()
                found = self._load(base)
                logger.info("base loaded", extra={"base": base.name, "seconds": time.perf_counter() - began})
                idle = [digest for digest, other in self._bases.items()
                        if not other.scheduler.has_work and digest not in self._lent]  # fmt: skip
                if len(self._bases) >= self.options.max_bases and idle:
                    del self._bases[idle[0]]
                self._bases[base.digest] = found
            self._bases.move_to_end(base.digest)
            return found

    def tokenizer(self, base: BaseWeights) -> ChatTokenizer:
        """Tokenizer and template alone, which is all that counting needs."""
        with self._reading:
            if base.digest not in self._tokenizers:
                self._tokenizers[base.digest] = ChatTokenizer.load(base.folder)
            return self._tokenizers[base.digest]

    def grammars(self, base: BaseWeights) -> GrammarTokens:
        """The vocabulary as grammars see it, without the weights."""
        tokenizer = self.tokenizer(base)
        with self._reading:
            if base.digest not in self._grammars:
                folder = Path(base.folder)
                vocabulary = read_config(folder).vocabulary
                self._grammars[base.digest] = GrammarTokens(folder, vocabulary, tokenizer.end_of_turn_ids)
            return self._grammars[base.digest]

    def _load(self, base: BaseWeights, lent: Decoder | None = None) -> _Base:
        return _Base(base, self.tokenizer(base), self.grammars(base), self.device, self.dtype, self.options, lent)

    @property
    def waiting(self) -> int:
        """Requests that no step has taken up yet."""
        return len(self._inbox) + sum(len(base.scheduler.waiting) for base in list(self._bases.values()))

    def metrics(self) -> dict[str, Any]:
        """What is in memory and at work, by base."""
        return {
            "device": str(self.device),
            "dtype": "int8" if self.options.dtype == "int8" else str(self.dtype),
            "threads": torch.get_num_threads(),
            "waiting": self.waiting,
            "bases": [_base_metrics(base) for base in list(self._bases.values())],
        }

    def close(self) -> None:
        """Stop after the current step; requests in flight end with Unavailable."""
        self._is_closed = True
        self._do(lambda: None)
        self._thread.join()

    def _do(self, command: Callable[[], object]) -> None:
        with self._wake:
            self._inbox.append(command)
            self._wake.notify()

    @torch.inference_mode()
    def _run(self) -> None:
        returned, has_worked = time.monotonic(), False
        while not self._is_closed:
            with self._wake:
                if not self._inbox and not any(base.scheduler.has_work for base in self._bases.values()):
                    self._wake.wait(RETURN_SECONDS if has_worked else None)
                commands, self._inbox = self._inbox, []
            for command in commands:
                command()
            for digest, base in list(self._bases.items()):
                if base.scheduler.has_work:
                    self._step(digest, base)
                    has_worked = True
            if has_worked and time.monotonic() - returned > RETURN_SECONDS:
                return_pages()
                returned, has_worked = time.monotonic(), False
        for base in self._bases.values():
            base.scheduler.fail_all(Unavailable("The generation worker is stopping."))

    def _step(self, digest: str, base: _Base) -> None:
        """After a step that failed nothing of the base can be trusted: its requests end and it is loaded anew."""
        try:
            base.scheduler.step()
        except Exception:
            incident = uuid4().hex[:12]
            logger.exception("step failed", extra={"base": base.name, "incident": incident})
            del self._bases[digest]
            base.scheduler.fail_all(Internal(f"Internal error; incident {incident} is in the worker's log."))


def _best_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _overloaded(limit: int) -> SartoError:
    detail = {"@type": RETRY_INFO, "retryDelay": "2s"}
    return ResourceExhausted(f"{limit} requests are waiting already; try again in a moment.", [detail])


def _base_metrics(base: _Base) -> dict[str, Any]:
    scheduler, runner = base.scheduler, base.runner
    residency = runner.adapters.residency
    return {
        "base": base.name,
        "running": scheduler.running,
        "waiting": len(scheduler.waiting),
        "promptTokens": scheduler.prompt_tokens,
        "generatedTokens": scheduler.generated_tokens,
        "cache": {"reservedTokens": scheduler.reserved_tokens, "limitTokens": scheduler.limits.cache_tokens},
        "prefixes": {
            "askedTokens": runner.prefixes.asked_tokens,
            "hitTokens": runner.prefixes.hit_tokens,
            "sizeBytes": runner.prefixes.size_bytes,
        },
        "adapters": {
            "resident": len(runner.adapters),
            "inUse": runner.adapters.in_use,
            "hits": residency.hits,
            "misses": residency.misses,
            "evictions": residency.evictions,
            "loadSeconds": residency.load_seconds,
        },
    }
