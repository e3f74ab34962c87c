"""The serving engine: one thread owns the models and computes; other threads submit requests and receive chunks.

Knows bases, adapters and tokens, no HTTP and no users.
"""

from __future__ import annotations

import gc
import logging
import math
import os
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch

from sarto.contract.common import BaseWeights
from sarto.engine.host_memory import available_bytes, return_pages
from sarto.engine.models.decoder import Decoder
from sarto.engine.models.load import read_config
from sarto.engine.ops.select import native_dtype
from sarto.engine.rendering.tokenizer import ChatTokenizer, TokenDecoder
from sarto.engine.serving.adapter_pool import AdapterKey
from sarto.engine.serving.generation import Deliver, EngineRequest, Generation
from sarto.engine.serving.grammars import Grammar, GrammarTokens
from sarto.engine.serving.request import PreparedRequest, read_request
from sarto.engine.serving.runner import Runner, can_be_lent
from sarto.engine.serving.scheduler import Scheduler, SchedulerLimits
from sarto.errors import RETRY_INFO, Internal, ResourceExhausted, SartoError, Unavailable
from sarto.names import asker
from sarto.schema.generation import GenerateContentRequest

logger = logging.getLogger(__name__)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.bfloat16}
"""dtype by the names of `EngineOptions.dtype`; for int8 only weights have it, everything else is bfloat16."""

RETURN_SECONDS = 20.0
"""Interval at which free pages of the heap are returned to the system. Only after generation: while a run trains, it
keeps freed pages for its next step."""


@dataclass(frozen=True)
class EngineOptions:
    """`threads` 0: all cores. `cache_bytes` 0: a quarter of the free memory when the base is loaded."""

    threads: int = 0
    device: str = "auto"
    dtype: str = "auto"
    queue_limit: int = 256
    max_rows: int = 64
    max_adapters: int = 64
    max_bases: int = 3
    idle_seconds: float = 300.0
    """After this time without a request a custom base or a fully tuned model is unloaded."""
    cache_bytes: int = 0


class _Base:
    """All objects of one base in memory. `lock` guards their creation; the scheduler belongs to the engine's thread."""

    def __init__(
        self,
        base: BaseWeights,
        texts: TokenDecoder,
        device: torch.device,
        dtype: torch.dtype,
        options: EngineOptions,
        lent: Decoder | None = None,
    ) -> None:
        free = available_bytes()
        cache_bytes = options.cache_bytes or free // 4
        self.name, self.is_custom = base.name, base.is_custom
        self.used = time.monotonic()
        """Time of its last request or step."""
        self.texts = texts
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
            self.runner, SchedulerLimits(options.max_rows, max(1, cache_bytes // self.runner.shape.token_bytes))
        )


class Engine:
    """`submit` and `cancel` are thread-safe; `deliver` is called on the engine's own thread."""

    def __init__(self, options: EngineOptions) -> None:
        self.options = options
        self.device = torch.device(options.device if options.device != "auto" else _best_device())
        self.dtype = native_dtype(self.device) if options.dtype == "auto" else DTYPES[options.dtype]
        torch.set_num_threads(options.threads or len(os.sched_getaffinity(0)))
        self._bases: OrderedDict[str, _Base] = OrderedDict()
        self._lent: dict[str, _Base] = {}
        self._loading = threading.Lock()
        self._tokenizers: dict[str, ChatTokenizer] = {}
        self._texts: dict[str, TokenDecoder] = {}
        self._grammars: dict[str, GrammarTokens] = {}
        self._reading = threading.Lock()
        self._wake = threading.Condition()
        self._inbox: list[Callable[[], object]] = []
        self._arriving: Counter[str] = Counter()
        """Number of requests in the inbox, by project."""
        self._is_closed = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def submit(
        self,
        number: int,
        base: BaseWeights,
        key: AdapterKey | None,
        request: GenerateContentRequest,
        deliver: Deliver,
        tenant: str = "",
    ) -> None:
        """Parse a request on this thread and queue it. Raises the errors of `read_request`, and ResourceExhausted."""
        prepared = read_request(request, self.tokenizer(base), self.base(base).context)
        self.take(number, base, key, prepared, deliver, tenant)

    def check_room(self, tenant: str) -> None:
        """Make room for a request of a project when the queue is full: the newest request of the project with the most
        ends with ResourceExhausted. Raises ResourceExhausted if this project has as many."""
        limit = self.options.queue_limit
        if self.waiting < limit:
            return
        waiting = Counter(self._arriving)
        schedulers = [base.scheduler for base in list(self._bases.values())]
        for scheduler in schedulers:
            waiting += scheduler.waiting
        largest, count = waiting.most_common(1)[0] if waiting else ("", 0)
        if count <= waiting[asker(tenant)] + 1:
            raise _overloaded(limit)
        self._do(lambda: any(scheduler.drop_newest(largest, _overloaded(limit)) for scheduler in schedulers))

    def take(
        self,
        number: int,
        base: BaseWeights,
        key: AdapterKey | None,
        prepared: PreparedRequest,
        deliver: Deliver,
        tenant: str = "",
    ) -> None:
        """Queue a parsed request, under a number that the caller chooses. It shares cached prompts with requests of its
        `tenant`. Raises InvalidArgument for an invalid grammar, ResourceExhausted when the queue is full."""
        self.check_room(tenant)
        home = self.base(base)
        grammar = Grammar(self.grammars(base, prepared.end_ids), *prepared.grammar) if prepared.grammar else None
        staged = home.runner.adapters.read(key) if key is not None and key not in home.runner.adapters else None
        engine_request = EngineRequest(number, prepared, grammar, home.texts, home.name, key, staged, deliver, tenant)
        generation = Generation(engine_request)

        def start() -> None:
            self._bases[base.digest] = home  # it may have been evicted in between
            home.scheduler.submit(generation)
            with self._wake:
                self._arriving[engine_request.project] -= 1

        with self._wake:
            self._arriving[engine_request.project] += 1
        self._do(start)

    def cancel(self, number: int) -> None:
        """Drop a request; nothing more is delivered for it. An unknown or finished number is ignored."""
        self._do(lambda: any(base.scheduler.cancel(number) for base in list(self._bases.values())))

    def forget_adapters(self, digests: Iterable[str]) -> None:
        """Remove adapters from memory, those in use when their last sequence ends, together with all cached prompts."""
        named = frozenset(digests)

        def forget() -> None:
            for base in self._bases.values():
                base.runner.forget(named)

        self._do(forget)

    def lend(self, base: BaseWeights, decoder: Decoder) -> None:
        """Serve a base with a decoder that is already in memory and that nothing else uses until `give_back`. If the
        decoder cannot be lent, the base is loaded like any other."""
        if can_be_lent(decoder, base, self.dtype, self.device) and self.options.dtype != "int8":
            with self._loading:
                lent = self._load(base, decoder)
                self._lent[base.digest] = self._bases[base.digest] = lent

    def give_back(self, base: BaseWeights) -> None:
        """Return the lent decoder and end its requests. It has no effect if nothing was lent."""
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
        """The base in memory, loaded on first use; the least recently used idle one is evicted for it."""
        with self._loading:
            entry = self._bases.get(base.digest)
            if entry is None:
                began = time.perf_counter()
                entry = self._load(base)
                logger.info("base loaded", extra={"base": base.name, "seconds": time.perf_counter() - began})
                idle = [digest for digest, other in self._bases.items()
                        if not other.scheduler.has_work and digest not in self._lent]  # fmt: skip
                if len(self._bases) >= self.options.max_bases and idle:
                    del self._bases[idle[0]]
                self._bases[base.digest] = entry
            self._bases.move_to_end(base.digest)
            entry.used = time.monotonic()
            return entry

    def tokenizer(self, base: BaseWeights) -> ChatTokenizer:
        """Tokenizer and template, for requests that are parsed here. A server's worker parses none."""
        with self._reading:
            if base.digest not in self._tokenizers:
                self._tokenizers[base.digest] = self._texts[base.digest] = ChatTokenizer.load(base.folder)
            return self._tokenizers[base.digest]

    def texts(self, base: BaseWeights) -> TokenDecoder:
        """The tokenizer without the template, which is sufficient for decoding."""
        with self._reading:
            if base.digest not in self._texts:
                self._texts[base.digest] = TokenDecoder.of(base.folder)
            return self._texts[base.digest]

    def grammars(self, base: BaseWeights, end_ids: frozenset[int]) -> GrammarTokens:
        """The vocabulary in the form of grammars."""
        with self._reading:
            if base.digest not in self._grammars:
                folder = Path(base.folder)
                self._grammars[base.digest] = GrammarTokens(folder, read_config(folder).vocabulary, end_ids)
            return self._grammars[base.digest]

    def _load(self, base: BaseWeights, lent: Decoder | None = None) -> _Base:
        return _Base(base, self.texts(base), self.device, self.dtype, self.options, lent)

    @property
    def waiting(self) -> int:
        """Number of requests in no step yet."""
        return self._arriving.total() + sum(base.scheduler.waiting.total() for base in list(self._bases.values()))

    def metrics(self) -> dict[str, Any]:
        """Objects in memory and running requests, by base."""
        return {
            "device": str(self.device),
            "dtype": "int8" if self.options.dtype == "int8" else str(self.dtype),
            "threads": torch.get_num_threads(),
            "waiting": self.waiting,
            "bases": [_base_metrics(base) for base in list(self._bases.values())],
        }

    def close(self) -> None:
        """Stop after the current step; requests in progress end with Unavailable."""
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
                    self._wake.wait(self._pause(RETURN_SECONDS if has_worked else math.inf))
                commands, self._inbox = self._inbox, []
            for command in commands:
                command()
            for digest, base in list(self._bases.items()):
                if base.scheduler.has_work:
                    self._step(digest, base)
                    base.used = time.monotonic()
                    has_worked = True
            self._unload_idle()
            if has_worked and time.monotonic() - returned > RETURN_SECONDS:
                return_pages()
                returned, has_worked = time.monotonic(), False
        for base in self._bases.values():
            base.scheduler.fail_all(Unavailable("The generation worker is stopping."))

    def _pause(self, most: float) -> float | None:
        """Seconds until there is something to do without a request; None if never."""
        due = (base.used + self.options.idle_seconds for base in list(self._bases.values()) if base.is_custom)
        pause = min(most, max(0.0, min(due, default=math.inf) - time.monotonic()))
        return pause if pause < math.inf else None

    def _unload_idle(self) -> None:
        """Drop models that few requests are for, and their tokenizers. A request on its way loads its model again."""
        now = time.monotonic()
        for digest, base in list(self._bases.items()):
            is_idle = base.is_custom and not base.scheduler.has_work and digest not in self._lent
            if is_idle and now - base.used >= self.options.idle_seconds:
                self._bases.pop(digest, None)
                with self._reading:
                    for kept in (self._tokenizers, self._texts, self._grammars):
                        kept.pop(digest, None)
                logger.info("base unloaded", extra={"base": base.name})
                del base
                gc.collect()
                return_pages()

    def _step(self, digest: str, base: _Base) -> None:
        """Run one step. After a failed step the state of the base is undefined: its requests end and it is loaded
        again."""
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
        "waiting": scheduler.waiting.total(),
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
