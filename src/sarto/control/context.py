"""`Control`: what every control function is handed. Built once by the assembly; holds no state of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from sarto.catalog import DIGEST_FILE, Catalog
from sarto.control.judge_endpoints import JudgeEndpoint
from sarto.errors import FailedPrecondition
from sarto.schema.runs import BaseWeights
from sarto.storage.buckets import Buckets
from sarto.storage.database import Database
from sarto.storage.sealer import Sealer

QUANTISED = "+"
"""Between the id of base weights and the form they are quantised to for good: `qwen3-4b+nf4`."""
CUSTOM = "custom-"
"""With this begin the ids of base weights that a user brought; a digest of their content follows."""
AnyRow = sa.Row[*tuple[Any, ...]]
"""A row of any table."""


@dataclass(frozen=True)
class Limits:
    """Numbers from the settings, by the same names."""

    concurrent_jobs: int = 1
    """Runs at once in one project; further jobs wait for quota."""
    concurrent_runs: int = 0
    """Runs at once under one supervisor, whatever would fit; further jobs wait for capacity. 0 is without limit."""
    run_threads: int = 0
    """CPU threads of all runs under one supervisor together; 0 is without limit."""
    run_memory_bytes: int = 0
    """Memory of all runs under one supervisor together; 0 is without limit."""
    run_gpus: int = 0
    """GPUs of this server, one for each run; 0: runs compute on processors."""
    max_dataset_bytes: int = 1_073_741_824
    max_training_examples: int = 10_000_000
    max_validation_examples: int = 5_000
    tuning_in_global: bool = False
    max_upload_bytes: int = 5 << 40
    lease_seconds: float = 10.0
    max_attempts: int = 3
    """Runs that may be lost to machinery before the job fails."""
    retry_seconds: float = 2.0
    """Pause after the first lost run; it doubles with each further one."""
    resume_seconds: float = 30.0
    """Between two resume points of a run: about what a kill can cost."""
    max_job_seconds: float = 0.0
    """From a job's first start to its end, all attempts together; 0 is without limit."""
    max_evaluation_seconds: float = 0.0
    """Of one checkpoint; 0 is without limit."""
    reserve_bytes: int = 0
    """Room on the disk that a run must leave; without it jobs wait."""
    room_seconds: float = 15.0
    """Pause before the disk is looked at again."""
    keep_run_days: float = 30.0
    """How long run folders of ended jobs stay, logs and data reports with them; 0 is for ever."""
    keep_cache_days: float = 30.0
    """How long tokenised data stays that nothing reads; 0 is for ever."""
    webhook_private_addresses: bool = False
    webhook_retry_seconds: float = 5.0
    """Pause before a webhook is told again; it quadruples with each further attempt."""
    threads: int = 1
    """CPU threads of one run."""
    devices: int = 1
    serve_int8: bool = False


@dataclass(frozen=True)
class Control:
    database: Database
    buckets: Buckets
    catalog: Catalog
    home: Path
    limits: Limits = field(default_factory=Limits)
    judges: Mapping[str, JudgeEndpoint] = field(default_factory=dict)
    """Models elsewhere that jobs may have as judges, by the names their users write."""
    default_judge: str = ""
    """Who judges where a request outside a tuning job names nobody."""

    @property
    def sealer(self) -> Sealer:
        return self.buckets.sealer

    def job_folder(self, job: str) -> Path:
        """Everything a job's runs leave on this machine: `data/`, `resume/` and one folder per lease epoch."""
        return self.home / "runs" / job

    def base(self, weights: str) -> BaseWeights:
        """Base weights by id, the catalogue's or a user's own, quantised where the id says so. Raises
        FailedPrecondition when they are not here."""
        if weights.startswith(CUSTOM):
            made = self.custom_base(weights)
            if not (Path(made.folder) / DIGEST_FILE).exists():
                raise FailedPrecondition(
                    f"The customBaseModel {made.name} is not on this server any more; tune it again."
                )
            return made
        plain = weights.partition(QUANTISED)[0]
        return _quantised(self.catalog.base(self.catalog.weights[plain]), weights)

    def custom_base(self, weights: str) -> BaseWeights:
        """What a user's base weights are or will be on this machine."""
        plain = weights.partition(QUANTISED)[0]
        return _quantised(BaseWeights(name=plain, folder=str(self.home / "models" / plain), digest=plain), weights)

    def adapter_folder(self, digest: str) -> Path:
        return self.home / "adapters" / digest


def _quantised(base: BaseWeights, weights: str) -> BaseWeights:
    """Another base for whatever goes by its digest: other values, so other answers."""
    kind = weights.partition(QUANTISED)[2]
    if not kind:
        return base
    return BaseWeights.model_validate(base.model_dump() | {"quantisation": kind, "digest": f"{base.digest}-{kind}"})
