"""Settings for control and serving: limits, and services elsewhere. `settings.Settings` nests them.

Each field of `Limits` is a setting of its own: a key of `config.toml` and a `SARTO_…` variable. OIDC issuers, judges
and vLLM servers are tables of `config.toml`. `make docs` writes the table of docs/operations.md from the field
docstrings here and in `settings.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic.dataclasses import dataclass as pydantic_dataclass

from sarto.errors import InvalidArgument


@dataclass(frozen=True)
class Limits:
    """Limits as configured. `assembly.machine.limits_of` replaces zeros that mean the size of the machine; in a running
    service 0 has no limit."""

    threads: int = 0
    """CPU threads of a run and of the serving worker; `0` uses every core that the process may use."""
    devices: Annotated[int, Field(ge=1)] = 1
    """GPUs that one run works on at once ([several GPUs](#several-gpus)); on a machine without a GPU, processes that
    share the run's threads."""
    concurrent_jobs: int = 1
    """Concurrent jobs of one project without a [quota](#who-runs-when) of its own; further jobs wait."""
    concurrent_runs: int = 0
    """Most concurrent runs on this machine, over all projects; `0` has no limit but threads, memory and GPUs."""
    run_threads: int = 0
    """CPU threads of all runs together, `threads` for each; `0` uses every core that the process may use."""
    run_memory_bytes: int = 0
    """Memory of all runs together; `0` is 80 % of the memory of the machine or its control group."""
    run_gpus: int | None = None
    """GPUs for runs, one for each run. Default: all GPUs."""
    max_dataset_bytes: int = 1 << 30
    """Largest dataset file, in bytes."""
    max_training_examples: int = 10_000_000
    """Most rows in a training file."""
    max_validation_examples: int = 5_000
    """Most rows in a validation file."""
    tuning_in_global: bool = False
    """Allow jobs of Gemini and translation models in the location `global`, which Google refuses; open models are
    always allowed there."""
    max_upload_bytes: int = 5 << 40
    """Largest upload, or part of one, in bytes; above: 413. Uploads that would use the last `reserve_bytes` get 429."""
    lease_seconds: float = 10.0
    """Time without a heartbeat after which other supervisors claim a supervisor's jobs."""
    resume_seconds: float = 30.0
    """Seconds between two resume points of a run; a crash loses about as much work."""
    max_attempts: int = 3
    """Lost runs (crash, kill, lost server) that fail a job; faults in data or request are not retried."""
    max_job_seconds: float = 604_800.0
    """Longest time of a job from its first start, over all attempts; then it fails with `DEADLINE_EXCEEDED`; `0` has
    no limit."""
    max_preparation_seconds: float = 3_600.0
    """Longest time for a run to read its base and its data; then the job fails with `DEADLINE_EXCEEDED`; `0` has no
    limit."""
    max_evaluation_seconds: float = 14_400.0
    """Longest evaluation of one checkpoint; then its run has an error and the job continues; finished answers are kept;
    `0` has no limit."""
    reserve_bytes: int = 256 << 20
    """Disk space of the home that no job or upload may use; with less free space jobs wait, as
    `WAITING_FOR_CAPACITY`."""
    keep_run_days: float = 30.0
    """Days until [run folders](#what-is-removed) of ended jobs are removed, with logs and data reports; `0` keeps
    them."""
    keep_audit_days: Annotated[float, Field(ge=0)] = 0.0
    """Days until entries of the [audit log](security.md#audit-log) are exported to `audit/` and removed from the
    database; `0` keeps them."""
    keep_cache_days: float = 30.0
    """Days until unused tokenised data is removed; `0` keeps it."""
    data_rights: Literal["caller-and-agent", "agent"] = "caller-and-agent"
    """Principals that need rights in the buckets of a job: its maker and the identity it runs as, or with `agent` only
    the identity, as at Google ([security](security.md#as-whom-a-job-runs))."""
    webhook_private_addresses: bool = False
    """Allow webhooks over plain HTTP, on ports other than 443 and 8443, and to private addresses, such as those of this
    machine and its network."""

    reward_code_seconds: Annotated[float, Field(gt=0)] = 10.0
    """Most seconds of one call of a reward's Python snippet ([rewards](rewards.md#python)); then the score fails."""
    reward_code_bytes: Annotated[int, Field(ge=64 << 20)] = 1 << 30
    """Most memory of each process that runs a reward's Python snippet."""
    reward_private_addresses: bool = False
    """Allow reward URLs (`cloudRunUri`) over plain HTTP, on other ports than 443 and 8443, and to private
    addresses."""

    @property
    def callers_need_rights(self) -> bool:
        return self.data_rights == "caller-and-agent"

    @property
    def gpus(self) -> int:
        """Number of GPUs for runs; 0 if runs compute on processors."""
        return self.run_gpus or 0


def _in_lower_case(words: frozenset[str]) -> frozenset[str]:
    return frozenset(map(str.lower, words))


@pydantic_dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class OidcIssuer:
    """A provider whose users may sign in with its ID tokens."""

    issuer: str
    audience: str
    jwks: str
    """Address (https) or file of its keys."""
    algorithms: tuple[str, ...] = ("RS256",)
    email_domains: Annotated[frozenset[str], AfterValidator(_in_lower_case)] = frozenset()
    """Domains whose verified addresses identify its users; required with two issuers."""


class Judge(BaseModel):
    """A model elsewhere that jobs may name as their autorater."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/@:-]{0,127}$")
    kind: Literal["openai", "gemini"]
    base_url: str
    """Part of the URL before `/chat/completions` or `/models/MODEL:generateContent`."""
    model: str = Field(min_length=1)
    key_variable: str = ""
    """Environment variable with its API key."""
    key_file: Path | None = None
    """File with its API key."""
    private_address: bool = False
    """Allow plain HTTP, any port, and private addresses."""
    replies: Literal["schema", "json"] = "schema"
    """`json` for an endpoint without response schemas."""
    token_limit: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """Name of the token limit in an OpenAI-compatible API."""
    timeout_seconds: float = Field(default=60.0, gt=0)
    concurrency: int = Field(default=8, ge=1)
    """Most concurrent calls, over all jobs of this server."""

    def key(self, environ: Mapping[str, str]) -> str:
        """The API key; empty if none is configured. Raises InvalidArgument for a missing variable or file."""
        if self.key_variable:
            if not environ.get(self.key_variable):
                raise InvalidArgument(f"judges: the key of {self.name} is not in the variable {self.key_variable}.")
            return environ[self.key_variable].strip()
        try:
            return self.key_file.expanduser().read_text().strip() if self.key_file else ""
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidArgument(
                f"judges: the key of {self.name} cannot be read from {self.key_file}: {error}"
            ) from None


class Vllm(BaseModel):
    """A vLLM server for one base and the models tuned on it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    weights: str
    """Id of the base weights, as in `sarto models`."""
    address: str = "http://127.0.0.1:8000"
    model: str
    """vLLM's name of the base (`--served-model-name`)."""
    command: list[str] = Field(default_factory=list)
    """Program and arguments that start it; empty for a server that is managed elsewhere."""
    key_variable: str = ""
    """Environment variable with its API key."""
    max_adapters: int = Field(default=64, ge=1)
    """Number of newest adapters that are loaded before their first use."""
