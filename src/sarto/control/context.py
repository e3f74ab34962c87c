"""`Control`: the argument of every control function. Created once by the assembly; it has no state of its own."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from sarto.catalog import DIGEST_FILE, Catalog
from sarto.configuration import Judge, Limits
from sarto.contract.common import CUSTOM, FULL, BaseWeights, Instructions
from sarto.contract.places import Places
from sarto.contract.run_folder import HOME, MODELS, TOKENS, UNSEALED, WORKSPACE
from sarto.errors import FailedPrecondition
from sarto.storage.buckets.store import Buckets
from sarto.storage.database.database import Database
from sarto.storage.encryption.sealer import Sealer
from sarto.system import outbound_http
from sarto.system.processor import Processor

ADAPTERS = "adapters"
"""Folder of the home with the adapters and fully tuned models of every project, each in a folder of its own."""
QUANTISED = "+"
"""Separates a base model's id from its quantisation: `qwen3-4b+nf4`."""
AnyRow = sa.Row[*tuple[Any, ...]]
"""A row of any table."""


@dataclass(frozen=True)
class Pauses:
    retry_seconds: float = 2.0
    """Pause after a job's first lost run; it doubles with each further one."""
    room_seconds: float = 15.0
    """Pause before a job that waits for disk space is checked again."""
    webhook_retry_seconds: float = 5.0
    """Pause before a webhook message is sent again; it quadruples with each further attempt."""


@dataclass(frozen=True)
class Control:
    database: Database
    buckets: Buckets
    catalog: Catalog
    home: Path
    limits: Limits = field(default_factory=Limits)
    pauses: Pauses = field(default_factory=Pauses)
    judges: Mapping[str, JudgeEndpoint] = field(default_factory=dict)
    """Judge models elsewhere, by the names that users write."""
    default_judge: str = ""
    """The judge of a request outside a tuning job that names none."""
    processor: Processor | None = None
    """Tests the processor before a run starts; without it, runs use all instructions."""
    serve_int8: bool = False
    """Whether the serving worker quantises weights, which parity certificates must measure."""

    @property
    def sealer(self) -> Sealer:
        return self.buckets.sealer

    @property
    def places(self) -> Places:
        """Where this server has the files that specs name, but for those of one workspace."""
        return Places({HOME: self.home, MODELS: self.catalog.models_folder, UNSEALED: self.sealer.private.root})

    def places_of(self, workspace: Path, tokens: Path) -> Places:
        return Places({**self.places.folders, WORKSPACE: workspace, TOKENS: tokens})

    def job_folder(self, job: str) -> Path:
        """Folder of a job's runs on this machine: `data/`, `resume/` and one folder per lease epoch."""
        return self.home / "runs" / job

    def base(self, weights: str) -> BaseWeights:
        """Base weights by id, of the catalogue or custom, quantised if the id has a quantisation. Raises
        FailedPrecondition when they are not on this machine."""
        if weights.startswith(CUSTOM):
            base = self.custom_base(weights)
            if not (Path(base.folder) / DIGEST_FILE).exists():
                raise FailedPrecondition(
                    f"The customBaseModel {base.name} is not on this server any more; tune it again."
                )
            return base
        if weights.startswith(FULL):
            return self._full_model(weights)
        plain = weights.partition(QUANTISED)[0]
        return _quantised(self.catalog.base(self.catalog.weights[plain]), weights)

    def custom_base(self, weights: str) -> BaseWeights:
        """A custom base on this machine, existing or not."""
        plain = weights.partition(QUANTISED)[0]
        return _quantised(BaseWeights(name=plain, folder=str(self.home / "models" / plain), digest=plain), weights)

    def _full_model(self, weights: str) -> BaseWeights:
        digest = weights.removeprefix(FULL)
        folder = self.adapter_folder(f"{ADAPTERS}/{digest}")
        if not folder.is_dir():
            raise FailedPrecondition("The fully tuned model was deleted.")
        return BaseWeights(name=f"fully tuned model {digest[:12]}", folder=str(folder), digest=weights)

    def token_cache(self, project: str) -> Path:
        """Token cache of a project. Projects do not share one, since the time of preparation reveals its content."""
        return self.home / "cache" / "tokens" / project

    def instructions(self, base: Path | str) -> Instructions:
        """The highest instruction level for the base in this folder. Raises the errors of `Processor.verdict`."""
        if self.processor is None:
            return Instructions()
        check = self.processor.verdict(base)
        return Instructions(level=check.level, words=check.words)

    def adapter_folder(self, name: str) -> Path:
        """By the name that rows have for it, relative to the home."""
        return self.home / name


def _quantised(base: BaseWeights, weights: str) -> BaseWeights:
    """A base with another digest, because its values and answers differ."""
    kind = weights.partition(QUANTISED)[2]
    if not kind:
        return base
    return BaseWeights.model_validate(base.model_dump() | {"quantisation": kind, "digest": f"{base.digest}-{kind}"})


@dataclass(frozen=True)
class JudgeEndpoint:
    """A judge elsewhere, its key, and the semaphore of its concurrent calls."""

    judge: Judge
    key: str = field(default="", repr=False)
    room: threading.BoundedSemaphore = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "room", threading.BoundedSemaphore(self.judge.concurrency))

    def target(self) -> outbound_http.Target:
        """The parsed address. Raises InvalidArgument for an address that cannot be called."""
        judge, path = self.judge, "chat/completions"
        if judge.kind == "gemini":
            path = f"{judge.model if '/' in judge.model else f'models/{judge.model}'}:generateContent"
        url = f"{judge.base_url.rstrip('/')}/{path}"
        return outbound_http.parse(
            url, f"judges.{judge.name}.base_url", judge.private_address, "private_address = true"
        )
