"""Settings: frozen, read once from `HOME/config.toml` and the environment; an unknown key is refused.

Only the assembly (`app`, `cli`) and `engine/run.py` import this; everyone else is handed the value it needs.
`docs/operations.md` lists every field (a test looks).
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import platformdirs
from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError

from sarto.errors import InvalidArgument


class OidcIssuer(BaseModel):
    """A provider whose users may sign in with its ID tokens."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    issuer: str
    audience: str
    jwks: str
    """Address (https) or file of its keys."""
    algorithms: list[str] = ["RS256"]


class Judge(BaseModel):
    """A model elsewhere that jobs may name as their autorater."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/@:-]{0,127}$")
    kind: Literal["openai", "gemini"]
    base_url: str
    """Before `/chat/completions` or `/models/MODEL:generateContent`."""
    model: str = Field(min_length=1)
    key_variable: str = ""
    """Environment variable that holds its key."""
    key_file: Path | None = None
    """File that holds its key."""
    private_address: bool = False
    """Let it be at http or at an address that is not public."""
    replies: Literal["schema", "json"] = "schema"
    """`json` for an endpoint that cannot hold a reply to a schema."""
    token_limit: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """What an OpenAI-compatible endpoint calls the limit of a reply."""
    timeout_seconds: float = Field(default=60.0, gt=0)
    concurrency: int = Field(default=8, ge=1)
    """Calls at once, over all jobs of this server."""

    def key(self, environ: Mapping[str, str]) -> str:
        """Empty where none was set. Raises InvalidArgument for a variable or a file that is not there."""
        if self.key_variable:
            if not environ.get(self.key_variable):
                raise InvalidArgument(f"judges: the key of {self.name} is not in the variable {self.key_variable}")
            return environ[self.key_variable].strip()
        try:
            return self.key_file.expanduser().read_text().strip() if self.key_file else ""
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidArgument(
                f"judges: the key of {self.name} cannot be read from {self.key_file}: {error}"
            ) from None


class Vllm(BaseModel):
    """A vLLM server that answers for one base and the models tuned on it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    weights: str
    """Id of the base weights, as `sarto models` lists them."""
    address: str = "http://127.0.0.1:8000"
    model: str
    """What vLLM calls the base (`--served-model-name`)."""
    command: list[str] = Field(default_factory=list)
    """Program and arguments to start it with; without, it is somebody else's."""
    key_variable: str = ""
    """Environment variable that holds its API key."""
    max_adapters: int = Field(default=64, ge=1)
    """The newest adapters are loaded ahead; others when they are asked for."""


class Settings(BaseModel):
    """Every field can stand in `config.toml` under its name, or in the environment as `SARTO_` plus its capitals."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    home: Path
    """Folder that holds database, buckets, credentials, base weights and runs."""
    host: str = "127.0.0.1"
    """Address to listen on."""
    data_folder: Path | None = None
    """Objects, runs, adapters and keys, for servers that share a PostgreSQL database; default: the home."""
    models_folder: Path | None = None
    """Where base weights are kept, shared between homes; default: a folder in the user's cache directory."""
    port: int = 8080
    """Port to listen on; 0 takes a free one."""
    grpc_port: int | None = None
    """Port of gRPC over TLS, which needs the extra sarto[grpc]; 0 takes a free one, and without a port it is off."""
    database_url: str = ""
    """SQLAlchemy URL; empty means SQLite in the home folder."""
    project: str = "demo"
    """Project that a fresh home is given."""
    threads: int = 0
    """CPU threads of a run and of the serving worker; 0 means the cores this process may use."""
    serving_precision: Literal["auto", "float32", "bfloat16", "int8"] = "auto"
    """Weights of the serving worker; int8 is faster and costs some quality, which each job's certificate states."""
    vllm: list[Vllm] = Field(default_factory=list)
    """Servers of vLLM that answer for a base each; everything else is answered by our own worker."""
    queue_limit: int = Field(default=256, ge=1)
    """Requests for generation that may wait; further ones are told to come back (429)."""
    devices: int = Field(default=1, ge=1)
    """GPUs that one run works on at once; on a machine without a GPU, processes that share the run's threads."""
    warm_seconds: float = 600.0
    """How long the base of the last run stays in memory, so that the next run on it starts at once; 0 keeps none."""
    concurrent_jobs: int = 1
    """Tuning jobs that run at once in one project, unless it has a quota of its own; further ones wait."""
    concurrent_runs: int = 0
    """Most runs at once on this machine, over all projects, whatever would fit; 0 is as many as fit."""
    run_threads: int = 0
    """CPU threads of all runs together: with `threads` for each; 0 means the cores this process may use."""
    run_memory_bytes: int = 0
    """Memory of all runs together; 0 means four fifths of what the machine or its control group has."""
    run_gpus: int | None = None
    """GPUs for runs, one for each; unset means those there are."""
    max_dataset_bytes: int = 1_073_741_824
    """Largest dataset file, in bytes."""
    max_training_examples: int = 10_000_000
    """Most rows in a training file."""
    max_validation_examples: int = 5_000
    """Most rows in a validation file."""
    tuning_in_global: bool = False
    """Let jobs of Gemini and translation models be made in the location `global`; open models always can be."""
    max_body_bytes: int = 32 * 1024 * 1024
    """Largest JSON request body, in bytes; uploads of objects are not bound by it."""
    max_upload_bytes: int = 5 << 40
    """Largest object that may be uploaded, in bytes; 5 TiB as in Cloud Storage."""
    requests_per_second: float = 0.0
    """Requests that one caller may make in a second, on one server; 0 is without limit."""
    lease_seconds: float = 10.0
    """How long a supervisor may be silent before its jobs are taken over."""
    token_seconds: int = 3600
    """Life of an access token, in seconds."""
    oidc_issuers: list[OidcIssuer] = []
    """Providers whose users may sign in: `[[oidc_issuers]]` with issuer, audience, jwks, algorithms."""
    audit_data_access: bool = False
    """Record reads and use of data in the audit log too; acts that change something and refusals always are."""
    metadata_server: bool = False
    """Answer the metadata-server paths, as the administrator, for programs on this machine that insist on them."""
    resume_seconds: float = 30.0
    """Seconds between two resume points of a run: about what a crash can cost."""
    max_job_seconds: float = 604_800.0
    """Longest a job may take from its first start, all attempts together; 0 is without limit."""
    max_evaluation_seconds: float = 14_400.0
    """Longest that the evaluation of one checkpoint may take; then its run has an error, and the job goes on; 0 is
    without limit."""
    reserve_bytes: int = 268_435_456
    """Room on the home's disk, in bytes, that no job may take; jobs wait while there is less."""
    keep_run_days: float = 30.0
    """How long run folders of ended jobs stay, logs and data reports with them; 0 is for ever."""
    keep_cache_days: float = 30.0
    """How long tokenised data stays that nothing reads; 0 is for ever."""
    webhook_private_addresses: bool = False
    """Let webhooks lead to http and to addresses that are not public, such as those of this machine and its network."""
    tls: Literal["off", "local"] = "off"
    """`local`: HTTPS with a certificate made in the home, signed by an authority made there too."""
    tls_certificate: Path | None = None
    """PEM file of a certificate of your own, with its chain; HTTPS is on with it."""
    tls_key: Path | None = None
    """PEM file of its private key."""
    plain_http_to_other_machines: bool = False
    """Let plain HTTP be listened for on an address that other machines reach."""
    run_without_network: Literal["where possible", "always"] = "where possible"
    """`always`: do not start where a run cannot be kept from the network."""
    master_key: SecretStr = SecretStr("")
    """Master key of the local key service: 32 bytes in base64; empty means `master_key_file`."""
    master_key_file: Path | None = None
    """File with the master key, mode 600; default: one in the home, made when first asked for."""
    master_key_keyring: bool = False
    """Keep the master key in the system's keyring, which needs the extra sarto[keyring]."""
    private_folder: Path | None = None
    """Where sealed artifacts are opened while they are worked on; default: in memory (/dev/shm), else in the home."""
    external_keys: dict[str, str] = {}
    """Keys of other key services: resource name to `hcvault://`, `gcp-kms://` or `aws-kms://` URI; in `config.toml`."""
    vault_token: SecretStr = SecretStr("")
    """Token for keys in a HashiCorp Vault."""
    judges: list[Judge] = []
    """Models elsewhere that jobs may name as autoraters: `[[judges]]` with name, kind, base_url, model and a key."""
    default_judge: str = ""
    """Model that judges where evaluateDataset or evaluateInstances name none, as `autoraterModel` would name it."""
    max_attempts: int = 3
    """Attempts at a job before a loss of machinery fails it."""


def default_home() -> Path:
    return Path(os.environ.get("SARTO_HOME") or platformdirs.user_data_dir("sarto", appauthor=False))


def load(home: Path | None = None, environ: Mapping[str, str] | None = None, **given: object) -> Settings:
    """Command line over environment over `config.toml` over defaults. Raises InvalidArgument naming the bad key."""
    environ = os.environ if environ is None else environ
    home = (home or Path(environ.get("SARTO_HOME") or default_home())).expanduser().absolute()
    values: dict[str, object] = {}
    config = home / "config.toml"
    if config.exists():
        values.update(tomllib.loads(config.read_text()))
    for name in Settings.model_fields:
        text = environ.get(f"SARTO_{name.upper()}")
        if text is not None and name != "home":
            values[name] = text
    values.update({name: value for name, value in given.items() if value is not None})
    try:
        return Settings(home=home, **values)
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise InvalidArgument(f"settings ({config} or SARTO_… variables): {faults}") from None
