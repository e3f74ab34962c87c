"""Small things that serving tests are made of: random adapters, requests, and an engine asked in plain calls."""

from __future__ import annotations

import json
import queue
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from sarto.contract.common import BaseWeights, Files
from sarto.engine.models.adapter_shape import ALL_TARGETS
from sarto.engine.models.load import load_base
from sarto.engine.serving.adapter_pool import AdapterKey
from sarto.engine.serving.engine import Engine, EngineOptions
from sarto.errors import SartoError
from sarto.schema.generation import GenerateContentRequest


def make_adapter(
    base: BaseWeights, folder: Path, rank: int = 8, targets: Sequence[str] = ALL_TARGETS, seed: int = 1
) -> AdapterKey:
    """A PEFT adapter folder whose effect on the tiny base is plain to see."""
    generator = torch.Generator().manual_seed(seed)
    decoder = load_base(base, torch.float32)
    tensors: dict[str, torch.Tensor] = {}
    for index in range(decoder.config.layers):
        layer = decoder.layer(index)
        for projection in (layer.qkv, layer.o, layer.gate_up, layer.down):
            for name, rows in zip(projection.names, projection.cuts, strict=True):
                if name.split(".")[-1] in targets:
                    path = f"base_model.model.model.layers.{index}.{name}"
                    a = torch.randn(rank, projection.inputs, generator=generator)
                    tensors[f"{path}.lora_A.weight"] = a / projection.inputs**0.5
                    tensors[f"{path}.lora_B.weight"] = 0.3 * torch.randn(rows, rank, generator=generator)
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base.name,
        "r": rank,
        "lora_alpha": 2 * rank,
        "target_modules": list(targets),
        "bias": "none",
        "inference_mode": True,
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return AdapterKey(digest=f"{folder.name}-{seed}", folder=str(folder))


def request(text: str = "Hello", **config: object) -> GenerateContentRequest:
    """One user turn. Greedy and short unless `config` (camelCase fields of generationConfig) says otherwise."""
    settings = {"temperature": 0, "maxOutputTokens": 12} | config
    contents = [{"role": "user", "parts": [{"text": text}]}]
    return GenerateContentRequest.read({"contents": contents, "generationConfig": settings})


FILES = Files(read=[], write=[tempfile.gettempdir()])
"""Where the bases of tests lie."""


class Asker:
    """An engine, its answers gathered by request number."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._outcomes: queue.Queue[tuple[int, dict[str, Any] | SartoError | None]] = queue.Queue()
        self._chunks: dict[int, list[dict[str, Any]]] = {}
        self._count = 0

    def send(
        self, base: BaseWeights, asked: GenerateContentRequest, key: AdapterKey | None = None, tenant: str = ""
    ) -> int:
        self._count += 1
        number = self._count
        self._chunks[number] = []
        self.engine.submit(number, base, key, asked, lambda outcome: self._outcomes.put((number, outcome)), tenant)
        return number

    def wait(self, numbers: Sequence[int]) -> dict[int, list[dict[str, Any]]]:
        """Chunks of these requests, whole. Raises the first error any request ends with."""
        open_ = set(numbers)
        while open_:
            number, outcome = self._outcomes.get(timeout=60)
            if isinstance(outcome, SartoError):
                raise outcome
            if outcome is None:
                open_.discard(number)
            else:
                self._chunks[number].append(outcome)
        return {number: self._chunks[number] for number in numbers}

    def first_chunk(self) -> dict[str, Any]:
        """The next chunk of any request."""
        number, outcome = self._outcomes.get(timeout=60)
        assert isinstance(outcome, dict)
        self._chunks[number].append(outcome)
        return outcome

    def ask(
        self, base: BaseWeights, asked: GenerateContentRequest, key: AdapterKey | None = None, tenant: str = ""
    ) -> list[dict[str, Any]]:
        number = self.send(base, asked, key, tenant)
        return self.wait([number])[number]


@contextmanager
def running_engine(**options: Any) -> Iterator[Asker]:
    engine = Engine(EngineOptions(**({"threads": 1, "dtype": "float32", "cache_bytes": 2**28} | options)))
    try:
        yield Asker(engine)
    finally:
        engine.close()


def text_of(chunks: list[dict[str, Any]], index: int = 0) -> str:
    """All text of one candidate."""
    return "".join(part.get("text", "") for part in parts_of(chunks, index))


def parts_of(chunks: list[dict[str, Any]], index: int = 0) -> list[dict[str, Any]]:
    return [
        part
        for chunk in chunks
        for candidate in chunk["candidates"]
        if candidate["index"] == index
        for part in candidate["content"].get("parts", [])
    ]


def tokens_of(chunks: list[dict[str, Any]]) -> list[tuple[int, float]]:
    """(id, log probability) of the first candidate's tokens; the request must ask for logprobs."""
    return [
        (chosen["tokenId"], chosen["logProbability"])
        for chunk in chunks
        for candidate in chunk["candidates"]
        for chosen in candidate.get("logprobsResult", {}).get("chosenCandidates", [])
    ]
