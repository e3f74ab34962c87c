"""Which sequences of one base run next: admission by memory and adapters, prompts in chunks, everyone else one token a
step. Lives on the engine's thread; `step` is the whole of its work."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from sarto.engine.serving.cache import Lane, shared_tokens
from sarto.engine.serving.generation import Candidate, Generation
from sarto.engine.serving.products import Choice
from sarto.engine.serving.runner import PromptChunk, Row, Runner
from sarto.engine.serving.sampling import Sampler, sample
from sarto.errors import SartoError


@dataclass(frozen=True)
class Limits:
    """`cache_tokens`: places in the key/value cache over all sequences."""

    max_rows: int
    cache_tokens: int
    chunk_tokens: int = 512
    """Prompt tokens of a step while nobody decodes."""
    mixed_chunk_tokens: int = 128
    """The same while others decode and wait for their next token."""


@dataclass(eq=False)
class _Prompt:
    """An admitted request whose prompt is being computed."""

    generation: Generation
    choice: Choice
    lane: Lane | None = None
    """None until its turn comes."""
    done: int = 0

    @property
    def tokens(self) -> list[int]:
        return self.generation.order.wanted.prompt

    @property
    def cache_name(self) -> str:
        """What its keys and values depend on beside its tokens."""
        key = self.generation.order.key
        return key.digest if key is not None else ""


class Scheduler:
    """Requests of one base, in order of arrival."""

    def __init__(self, runner: Runner, limits: Limits) -> None:
        self.runner, self.limits = runner, limits
        self.waiting: deque[Generation] = deque()
        self._prompts: list[_Prompt] = []
        self._decoding: dict[Row, tuple[Generation, Candidate]] = {}
        self._admitted: set[Generation] = set()
        self._reserved = 0
        self.generated_tokens = 0
        self.prompt_tokens = 0

    @property
    def has_work(self) -> bool:
        return bool(self.waiting or self._admitted)

    @property
    def running(self) -> int:
        return len(self._admitted)

    @property
    def reserved_tokens(self) -> int:
        return self._reserved

    def submit(self, generation: Generation) -> None:
        self.waiting.append(generation)

    def cancel(self, number: int) -> bool:
        """Drop a request, wherever it is; nothing more is delivered for it."""
        for generation in [*self.waiting, *self._admitted]:
            if generation.order.number == number:
                self._drop(generation)
                return True
        return False

    def fail_all(self, error: SartoError) -> None:
        """End every request with an error. What they held is not freed: nobody uses this scheduler afterwards."""
        for generation in [*self.waiting, *self._admitted]:
            generation.order.deliver(error)

    def step(self) -> None:
        """Admit whom memory allows, compute one token for all who decode and a stretch of the prompts that wait."""
        self._admit()
        chunks = self._chunks()
        if not chunks and not self._decoding:
            return
        logits = self.runner.step([chunk for _, chunk in chunks])
        takers: list[tuple[Generation, Candidate]] = [self._decoding[row] for row in self.runner.rows()]
        sources = list(range(len(takers)))
        place = len(takers)
        finished: list[_Prompt] = []
        for prompt, chunk in chunks:
            prompt.done += chunk.length
            self.prompt_tokens += chunk.length
            if chunk.is_last:
                finished.append(prompt)
                takers += [(prompt.generation, candidate) for candidate in prompt.generation.candidates]
                sources += [place] * len(prompt.generation.candidates)
                place += 1
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
        self.runner.prefixes.keep(prompt.cache_name, prompt.tokens, prompt.lane.content(0))
        for candidate in generation.candidates:
            if candidate.finish_reason:
                continue
            candidate.row = Row([*prompt.tokens, first[candidate]], prompt.choice)
            self.runner.join(candidate.row, prompt.lane)
            self._decoding[candidate.row] = (generation, candidate)

    def _admit(self) -> None:
        while self.waiting:
            generation = self.waiting[0]
            rows = sum(len(admitted.candidates) for admitted in self._admitted) + len(generation.candidates)
            has_room = self._reserved + generation.needed_tokens <= self.limits.cache_tokens
            if self._admitted and (rows > self.limits.max_rows or not has_room):
                return
            key, choice = generation.order.key, None
            if key is not None:
                try:
                    choice = self.runner.adapters.acquire(key, generation.order.staged)
                except SartoError as error:
                    self.waiting.popleft()
                    generation.order.deliver(error)
                    continue
                if choice is None:
                    return  # every resident adapter is at work
            self.waiting.popleft()
            self._admitted.add(generation)
            self._reserved += generation.needed_tokens
            self._prompts.append(_Prompt(generation, choice))

    def _chunks(self) -> list[tuple[_Prompt, PromptChunk]]:
        """The stretch of prompts for this step, oldest first."""
        left = self.limits.mixed_chunk_tokens if self._decoding else self.limits.chunk_tokens
        found = []
        for place, prompt in enumerate(self._prompts):
            if not left:
                break
            if prompt.lane is None:
                if self._is_under_way(prompt, self._prompts[:place]):
                    continue
                prompt.lane, prompt.done = self.runner.open(prompt.tokens, prompt.cache_name)
                prompt.generation.known_tokens = prompt.done
            length = min(left, len(prompt.tokens) - prompt.done)
            found.append((prompt, PromptChunk(prompt.lane, prompt.tokens, prompt.done, length, prompt.choice)))
            left -= length
        return found

    def _is_under_way(self, prompt: _Prompt, earlier: list[_Prompt]) -> bool:
        """Whether an earlier prompt is computing a beginning of this one that the prefix cache will then hold."""
        known = self.runner.prefixes.known_tokens(prompt.cache_name, prompt.tokens)
        return any(
            other.cache_name == prompt.cache_name and shared_tokens(other.tokens, prompt.tokens[:-1]) > known
            for other in earlier
        )

    def _settle(self, generation: Generation, candidate: Candidate) -> None:
        """Free what a finished candidate and a finished request held."""
        if candidate.finish_reason and candidate.row is not None:
            del self._decoding[candidate.row]
            self.runner.leave(candidate.row)
            candidate.row = None
        if generation.is_finished:
            self._release(generation)

    def _drop(self, generation: Generation) -> None:
        if generation in self.waiting:
            self.waiting.remove(generation)
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
            if generation.order.key is not None:
                self.runner.adapters.release(generation.order.key)
