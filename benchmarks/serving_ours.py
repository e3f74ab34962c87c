"""Our serving under measurement: prefill, decode and time to first token, on adapters made for the purpose.

Used by `serving_vs_peers.py`, which compares it with its peers. A clock is `time.perf_counter`, or on a busy machine
`time.process_time`.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from sarto.contract.common import BaseWeights
from sarto.engine.models.adapter_shape import AdapterShape
from sarto.engine.models.load import load_base
from sarto.engine.models.lora import LoraAdapter
from sarto.engine.serving.adapter_pool import AdapterKey
from sarto.engine.serving.engine import Engine
from sarto.engine.serving.linear import Choice
from sarto.engine.serving.runner import PromptChunk, Row, Runner
from sarto.engine.serving.sampling import Sampler, Sampling, sample
from sarto.engine.weights.peft import write_adapter
from sarto.errors import SartoError
from sarto.schema.generation import GenerateContentRequest

Clock = Callable[[], float]


def make_adapters(base: BaseWeights, folder: Path, count: int, rank: int = 16) -> list[AdapterKey]:
    """PEFT folders of adapters on all linear projections, with small random values."""
    lora = LoraAdapter(load_base(base, torch.float32), AdapterShape(rank, 2.0 * rank))
    keys = []
    for number in range(count):
        generator = torch.Generator().manual_seed(number)
        for name, tensor in lora.named_tensors():
            if "lora_B" in name:
                tensor.data.copy_(0.01 * torch.randn(tensor.shape, generator=generator))
        write_adapter(lora, folder / str(number), base.name)
        keys.append(AdapterKey(f"adapter-{number}", str(folder / str(number))))
    return keys


class Ours:
    """A runner, driven as the scheduler drives it, sampling included."""

    def __init__(
        self, base: BaseWeights, dtype: torch.dtype, keys: Sequence[AdapterKey], *, int8: bool = False
    ) -> None:
        limit = max(len(keys), 1)
        self.runner = Runner(base, dtype, torch.device("cpu"), adapter_limit=limit, prefix_bytes=0, int8=int8)
        with torch.inference_mode():
            self.answers: list[list[int]] = []
            self.choices: list[Choice] = [self.runner.adapters.acquire(key, None) for key in keys]

    @torch.inference_mode()
    def measure(
        self, prompts: Sequence[list[int]], choices: Sequence[Choice], new: int, clock: Clock
    ) -> tuple[float, float]:
        """(prompt tokens a second, decoded tokens a second) over all sequences."""
        began, opened = clock(), []
        for prompt, choice in zip(prompts, choices, strict=True):
            lane, _ = self.runner.open(prompt, "")
            logits = self.runner.step([PromptChunk(lane, prompt, 0, len(prompt), choice)])
            opened.append((Row([*prompt, int(logits[0].argmax())], choice), lane))
        prefill = sum(map(len, prompts)) / (clock() - began)
        for row, lane in opened:
            self.runner.join(row, lane)
        samplers = [Sampler(Sampling(temperature=0)) for _ in opened]
        began = clock()
        for _ in range(new):
            picks = sample(self.runner.step([]), samplers)
            for row, pick in zip(self.runner.rows(), picks, strict=True):
                row.tokens.append(pick.token)
        decode = len(opened) * new / (clock() - began)
        self.answers = [row.tokens[len(prompt) :] for (row, _), prompt in zip(opened, prompts, strict=True)]
        for row, _ in opened:
            self.runner.leave(row)
        return prefill, decode


class Streams:
    """Closed-loop clients of an engine: each asks again as soon as it has its answer."""

    def __init__(self, engine: Engine, base: BaseWeights, keys: Sequence[AdapterKey]) -> None:
        self.engine, self.base, self.keys = engine, base, keys
        self.errors: list[SartoError] = []
        self._count = 0

    def run(
        self, clients: int, prompt: Callable[[int], str], new: int, stop: Callable[[int, float], bool]
    ) -> list[float]:
        """Seconds to the first chunk of every answer until `stop(answers, seconds)`. The first answer of each client is
        left out: they all ask at the same moment."""
        outcomes: queue.Queue[tuple[int, Any]] = queue.Queue()
        sent: dict[int, float] = {}
        first: dict[int, float] = {}
        began, done = time.perf_counter(), 0

        def ask() -> None:
            self._count += 1
            number = self._count
            row = {
                "contents": [{"role": "user", "parts": [{"text": prompt(number)}]}],
                "generationConfig": {"maxOutputTokens": new, "seed": number},
            }
            sent[number] = time.perf_counter()
            key = self.keys[number % len(self.keys)] if self.keys else None
            self.engine.submit(
                number,
                self.base,
                key,
                GenerateContentRequest.read(row),
                lambda outcome: outcomes.put((number, outcome)),
            )

        for _ in range(clients):
            ask()
        while len(sent) > done:
            number, outcome = outcomes.get()
            if isinstance(outcome, dict):
                first.setdefault(number, time.perf_counter() - sent[number])
                continue
            if outcome is not None:
                self.errors.append(outcome)
            done += 1
            if not stop(done, time.perf_counter() - began):
                ask()
        return [seconds for number, seconds in first.items() if number >= min(sent) + clients]
