"""`Control`: what every control function is handed. Built once by the assembly; holds no state of its own."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from sarto.catalog import Catalog
from sarto.storage.buckets import Buckets
from sarto.storage.database import Database

AnyRow = sa.Row[*tuple[Any, ...]]
"""A row of any table."""


@dataclass(frozen=True)
class Limits:
    """Numbers from the settings, by the same names."""

    concurrent_jobs: int = 1
    """Runs at once in one project; further jobs wait for quota."""
    concurrent_runs: int = 1
    """Runs at once under one supervisor; further jobs wait for capacity."""
    max_dataset_bytes: int = 1_073_741_824
    max_training_examples: int = 10_000_000
    max_validation_examples: int = 5_000
    lease_seconds: float = 10.0
    max_attempts: int = 3
    """Runs that may be lost to machinery before the job fails."""
    retry_seconds: float = 2.0
    """Pause after the first lost run; it doubles with each further one."""
    threads: int = 1
    """CPU threads of one run."""


@dataclass(frozen=True)
class Control:
    database: Database
    buckets: Buckets
    catalog: Catalog
    home: Path
    limits: Limits = field(default_factory=Limits)

    def job_folder(self, job: str) -> Path:
        """Everything a job's runs leave on this machine: `data/`, `resume/` and one folder per lease epoch."""
        return self.home / "runs" / job

    def adapter_folder(self, digest: str) -> Path:
        return self.home / "adapters" / digest
