"""The scheduler of one base: admission by memory and adapters, prompts in chunks, one token per step for each decoding
row. Not thread-safe: only the engine's thread calls it."""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from dataclasses import dataclass

from sarto.engine.serving.generation import Candidate, Generation
from sarto.engine.serving.kv_cache import Lane, shared_tokens
from sarto.engine.serving.linear import Choice
from sarto.engine.serving.runner import PromptChunk, Row, Runner
from sarto.engine.serving.sampling import Sampler, sample
from sarto.errors import SartoError


@dataclass(frozen=True)
class SchedulerLimits:
    """`cache_tokens`: tokens in the KV cache over all sequences."""

    max_rows: int
    cache_tokens: int
    chunk_tokens: int = 512
    """Prompt tokens of a step while no row decodes."""
    mixed_chunk_tokens: int = 128
    """Prompt tokens of a step while rows decode and wait for their next token."""


@dataclass(eq=False)
class _Prompt:
    """An admitted request whose prompt is being computed."""

    generation: Generation
    choice: Choice
    lane: Lane | None = None
    """None until its first chunk."""
    done: int = 0

    @property
    def tokens(self) -> list[int]:
        return self.generation.request.prepared.prompt

    @property
    def cache_name(self) -> str:
        """Name of its part of the prefix cache. Keys and values depend on the adapter, and a cache hit must not reveal
        another tenant's prompt."""
        request = self.generation.request
        return f"{request.tenant}\0{request.key.digest if request.key is not None else ''}"


class Scheduler:
    """Requests of one base: projects take turns, and within a project the order is that of arrival."""

    def __init__(self, runner: Runner, limits: SchedulerLimits) -> None:
        self.runner, self.limits = runner, limits
        self._waiting: OrderedDict[str, deque[Generation]] = OrderedDict()
        """Queues by project; the project with the next turn is first."""
        self._prompts: list[_Prompt] = []
        self._decoding: dict[Row, tuple[Generation, Candidate]] = {}
        self._admitted: set[Generation] = set()
        self._reserved = 0
        self.generated_tokens = 0
        self.prompt_tokens = 0

    @property
    def has_work(self) -> bool:
        return bool(self._waiting or self._admitted)

    @property
    def waiting(self) -> Counter[str]:
        """Number of waiting requests, by project."""
        return Counter({project: len(queue) for project, queue in self._waiting.items()})

    @property
    def running(self) -> int:
        return len(self._admitted)

    @property
    def reserved_tokens(self) -> int:
        return self._reserved

    def submit(self, generation: Generation) -> None:
        self._waiting.setdefault(generation.request.project, deque()).append(generation)

    def drop_newest(self, project: str, error: SartoError) -> bool:
        """End the newest waiting request of the project with an error; False if it has none."""
        queue = self._waiting.get(project)
        if not queue:
            return False
        newest = queue[-1]
        self._leave_queue(newest)
        newest.request.deliver(error)
        return True

    def cancel(self, number: int) -> bool:
        """Drop a request in any state; nothing more is delivered for it."""
        for generation in [*self._queued(), *self._admitted]:
            if generation.request.number == number:
                self._drop(generation)
                return True
        return False

    def fail_all(self, error: SartoError) -> None:
        """End every request with an error. Their memory is not freed: the scheduler cannot be used afterwards."""
        for generation in [*self._queued(), *self._admitted]:
            generation.request.deliver(error)

    def step(self) -> None:
        """Admit requests, and compute one token for each decoding row and chunks of the waiting prompts."""
        self._admit()
        chunks = self._chunks()
        if not chunks and not self._decoding:
            return
        logits = self.runner.step([chunk for _, chunk in chunks])
        takers: list[tuple[Generation, Candidate]] = [self._decoding[row] for row in self.runner.rows()]
        sources = list(range(len(takers)))
        position = len(takers)
        finished: list[_Prompt] = []
        # `runner.step` returns logits in this order: decoding rows, then one row per chunk that ends its prompt. All
        # candidates of a request sample their first token from the same row of logits.
        for prompt, chunk in chunks:
            prompt.done += chunk.length
            self.prompt_tokens += chunk.length
            if chunk.is_last:
                finished.append(prompt)
                takers += [(prompt.generation, candidate) for candidate in prompt.generation.candidates]
                sources += [position] * len(prompt.generation.candidates)
                position += 1
        samplers: list[Sampler] = [candidate.sampler for _, candidate in takers]
        picks = sample(logits[sources], samplers) if takers else []
        for prompt in finished:
            self._prompts.remove(prompt)
        for (generation, candidate), pick in zip(takers, picks, strict=True):
            generation.take(candidate, pick)
            self.generated_tokens += 1
            if candidate.row is not None:
                candidate.row.tokens.append(pick.token)
            self._settle(generation, candidate)
        for prompt in finished:
            self._begin_decoding(prompt, {c: p.token for (_, c), p in zip(takers, picks, strict=True)})

    def _begin_decoding(self, prompt: _Prompt, first: dict[Candidate, int]) -> None:
        generation = prompt.generation
        assert prompt.lane is not None
        # Kept now, not when the request ends: prompts with the same beginning wait for it (`_is_under_way`).
        self.runner.prefixes.keep(prompt.cache_name, prompt.tokens, prompt.lane.content(0))
        for candidate in generation.candidates:
            if candidate.finish_reason:
                continue
            candidate.row = Row([*prompt.tokens, first[candidate]], prompt.choice)
            self.runner.join(candidate.row, prompt.lane)
            self._decoding[candidate.row] = (generation, candidate)

    def _admit(self) -> None:
        """Admit requests while there is space: first of the project with the fewest running ones, then in turn."""
        while self._waiting:
            at_work = Counter(admitted.request.project for admitted in self._admitted)
            project = min(self._waiting, key=lambda name: at_work[name])  # of equals the first, whose turn it is
            generation = self._waiting[project][0]
            rows = sum(len(admitted.candidates) for admitted in self._admitted) + len(generation.candidates)
            has_room = self._reserved + generation.needed_tokens <= self.limits.cache_tokens
            # A request larger than all limits is admitted alone, since it would otherwise wait for ever. For the same
            # reason admission ends here: smaller requests after it would use the space that it waits for.
            if self._admitted and (rows > self.limits.max_rows or not has_room):
                return
            key, choice = generation.request.key, None
            if key is not None:
                try:
                    choice = self.runner.adapters.acquire(key, generation.request.staged)
                except SartoError as error:
                    self._leave_queue(generation)
                    generation.request.deliver(error)
                    continue
                if choice is None:
                    return  # every resident adapter is in use, and none can be evicted
            self._leave_queue(generation)
            self._admitted.add(generation)
            self._reserved += generation.needed_tokens
            self._prompts.append(_Prompt(generation, choice))

    def _queued(self) -> list[Generation]:
        return [generation for queue in self._waiting.values() for generation in queue]

    def _leave_queue(self, generation: Generation) -> None:
        """Remove a request from its queue, and move its project behind all others."""
        queue = self._waiting.pop(generation.request.project)
        queue.remove(generation)
        if queue:
            self._waiting[generation.request.project] = queue

    def _chunks(self) -> list[tuple[_Prompt, PromptChunk]]:
        """The chunks of prompts for this step, oldest first."""
        left = self.limits.mixed_chunk_tokens if self._decoding else self.limits.chunk_tokens
        chunks = []
        for position, prompt in enumerate(self._prompts):
            if not left:
                break
            if prompt.lane is None:
                if self._is_under_way(prompt, self._prompts[:position]):
                    continue
                prompt.lane, prompt.done = self.runner.open(prompt.tokens, prompt.cache_name)
                prompt.generation.known_tokens = prompt.done
            length = min(left, len(prompt.tokens) - prompt.done)
            chunks.append((prompt, PromptChunk(prompt.lane, prompt.tokens, prompt.done, length, prompt.choice)))
            left -= length
        return chunks

    def _is_under_way(self, prompt: _Prompt, earlier: list[_Prompt]) -> bool:
        """Whether an earlier prompt is computing a prefix of this one that the prefix cache will then hold."""
        known = self.runner.prefixes.known_tokens(prompt.cache_name, prompt.tokens)
        # Without the last token: it is always computed, since its logits give the first token of the answer.
        return any(
            other.cache_name == prompt.cache_name and shared_tokens(other.tokens, prompt.tokens[:-1]) > known
            for other in earlier
        )

    def _settle(self, generation: Generation, candidate: Candidate) -> None:
        """Free the memory of a finished candidate and a finished request."""
        if candidate.finish_reason and candidate.row is not None:
            del self._decoding[candidate.row]
            self.runner.leave(candidate.row)
            candidate.row = None
        if generation.is_finished:
            self._release(generation)

    def _drop(self, generation: Generation) -> None:
        if generation in self._waiting.get(generation.request.project, ()):
            self._leave_queue(generation)
            return
        self._prompts = [prompt for prompt in self._prompts if prompt.generation is not generation]
        for candidate in generation.candidates:
            if candidate.row is not None:
                del self._decoding[candidate.row]
                self.runner.leave(candidate.row)
                candidate.row = None
        self._release(generation)

    def _release(self, generation: Generation) -> None:
        if generation in self._admitted:
            self._admitted.remove(generation)
            self._reserved -= generation.needed_tokens
            if generation.request.key is not None:
                self.runner.adapters.release(generation.request.key)
