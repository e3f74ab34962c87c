"""Settings: frozen, read once from `HOME/config.toml` and the environment; an unknown key is refused.

Only `assembly` and `cli` import this module; other modules get the values that they need as arguments. `make docs`
writes the table of docs/operations.md from the field docstrings; one may end with "Default: …." where the value does
not show it.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

import platformdirs
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    model_validator,
)

from sarto.configuration import Judge, Limits, OidcIssuer, Vllm
from sarto.errors import InvalidArgument
from sarto.system.files import read_toml


def _split(value: object) -> object:
    return value.replace(",", " ").split() if isinstance(value, str) else value


def _check_networks(value: list[str]) -> list[str]:
    for one in value:
        ipaddress.ip_network(one)
    return value


def _check_url(value: str) -> str:
    parts = urlsplit(value)
    if value and (parts.scheme not in ("http", "https") or not parts.hostname or parts.path.strip("/") or parts.query):
        raise ValueError("write it as https://HOST or https://HOST:PORT, without a path")
    return value.rstrip("/")


Words = Annotated[list[str], BeforeValidator(_split)]
"""A list that the environment writes with commas."""
Networks = Annotated[Words, AfterValidator(_check_networks)]


class Settings(BaseModel):
    """Each field, and each of `Limits`, is a key of `config.toml` and a variable `SARTO_` plus its name in capitals."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    home: Path
    """Folder of the service's files: database, buckets, credentials and runs. Default: a folder in the user's data
    directory."""
    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = 8080
    """Port to listen on; `0` takes a free one."""
    public_url: Annotated[str, AfterValidator(_check_url)] = ""
    """Address under which clients reach the service, such as `https://tuner.example.com`: in keys, tokens and the
    banner, and an accepted host name. Default: the address that it listens on."""
    public_names: Words = []
    """Host names that the service answers to besides this machine's own ([behind a proxy](#behind-a-proxy)); separated
    by commas in the environment."""
    trusted_proxies: Networks = []
    """Addresses and networks of proxies whose `X-Forwarded-For` and `X-Forwarded-Proto` are used."""
    grpc_port: int | None = None
    """Port of gRPC over TLS, with the extra `sarto[grpc]`; `0` takes a free one ([api.md](api.md#grpc)). Default:
    off."""
    data_folder: Path | None = None
    """Objects, runs, adapters and keys, for [servers that share a database](#several-servers). Default: the home."""
    models_folder: Path | None = None
    """Folder of base weights, which homes can share. Default: a folder in the user's cache directory."""
    database_url: str = ""
    """SQLAlchemy URL, such as `postgresql+psycopg://user@host/sarto`. Default: SQLite in the home."""
    project: str = "demo"
    """Project of a fresh home."""
    warm_seconds: float = 600.0
    """Idle time after which a resident process ends; until then the next run on its base starts at once; `0` keeps
    none."""
    limits: Limits = Limits()
    """Its fields are settings beside these."""
    serving_precision: Literal["auto", "float32", "bfloat16", "int8"] = "auto"
    """Weights of the serving worker: `auto` is bfloat16 where the processor multiplies it, else float32. `int8` is
    faster and costs some quality ([serving](#serving))."""
    vllm: list[Vllm] = Field(default_factory=list)
    """Servers of vLLM, each for one base, as tables in `config.toml` ([serving](#serving))."""
    queue_limit: int = Field(default=256, ge=1)
    """Length of the queue for generation; further requests get 429 RESOURCE_EXHAUSTED with a time to retry."""
    prompt_seconds: float = Field(default=2.0, gt=0)
    """Most processor time for reading one prompt: tokenizer, chat template, schema ([below](#reading-requests))."""
    prompt_memory_bytes: int = Field(default=512 << 20, ge=64 << 20)
    """Most memory for reading one prompt, besides the base's tokenizer."""
    check_seconds: float = Field(default=600.0, gt=0)
    """Most processor time for `checkDataset` or `showExample`; processes that tokenize a large file may take five times
    as much wall-clock time."""
    check_memory_bytes: int = Field(default=4 << 30, ge=64 << 20)
    """Most memory of each process of a check of a dataset, and of `evaluateInstances`."""
    max_body_bytes: int = 32 * 1024 * 1024
    """Largest JSON body of a method with prompts, in bytes; other methods: 1 MiB, and 64 KiB for methods without
    authorisation; uploads have their own limit."""
    requests_per_second: float = 0.0
    """Most requests per second of one caller on one server; above: 429 with a time to retry; `0` has no limit."""
    connections: int = Field(default=768, ge=1)
    """Open connections at once, on one server; above: 503. Keep it below the limit of open files."""
    connections_per_address: int = Field(default=256, ge=0)
    """Most open connections from one address; above: 429; `0` has no limit, for a service behind a proxy."""
    waits_per_caller: int = Field(default=100, ge=1)
    """Most concurrent waits (`:wait`) and event streams of one caller on one server; above: 429."""
    judges: list[Judge] = []
    """Models of other services that jobs may name as autoraters, as `[[judges]]` in `config.toml`
    ([judges](#judges-elsewhere))."""
    default_judge: str = ""
    """Judge for `evaluateDataset` and `evaluateInstances` without an `autoraterModel`, written like one."""
    tls: Literal["off", "local"] = "off"
    """`local`: HTTPS with a generated certificate ([TLS](#tls))."""
    tls_names: Words = []
    """Further host names and addresses of the generated certificate; separated by commas in the environment."""
    tls_certificate: Path | None = None
    """PEM file of your certificate with its chain; it switches HTTPS on."""
    tls_key: Path | None = None
    """PEM file of its private key."""
    plain_http_to_other_machines: bool = False
    """Allow plain HTTP on an address that other machines reach."""
    run_confinement: Literal["where possible", "always"] = "where possible"
    """`always`: refuse to start on a machine that cannot sandbox runs fully."""
    allow_root: bool = False
    """Allow a start as root, for instance in a container."""
    master_key: SecretStr = SecretStr("")
    """Master key, 32 bytes in base64, which encrypts every customer key; empty: `master_key_file`
    ([keys](#customer-keys))."""
    master_key_keyring: bool = False
    """Keep the master key in the system's keyring; needs `sarto[keyring]`."""
    private_folder: Path | None = None
    """Folder for decrypted files of customer keys while a process works on them; best in memory. Default: a folder in
    `/dev/shm`, else `private` in the home."""
    master_key_file: Path | None = None
    """File with the master key, mode 600. Default: `credentials/master.key` in the home."""
    external_keys: dict[str, str] = {}
    """Keys of other key services, as a table in `config.toml`: resource name to URI."""
    vault_token: SecretStr = SecretStr("")
    """Token for keys in a HashiCorp Vault."""
    oidc_issuers: list[OidcIssuer] = []
    """OIDC providers whose users may sign in, as `[[oidc_issuers]]` in `config.toml`
    ([security](security.md#principals))."""
    audit_data_access: bool = False
    """Log reads and use of data in the audit log too; changes and refusals are always logged."""
    token_seconds: int = 3600
    """Life of an access token."""
    max_key_days: float = Field(default=0.0, ge=0)
    """Longest life of new service account keys, the administrator's too, and the default; `0` has no limit."""
    metadata_server: str = ""
    """Email of the service account that the metadata-server paths issue tokens for, to programs of the service's own
    user on this machine (Linux); not an account with a role on the service."""

    @property
    def shared_folder(self) -> Path:
        """`data_folder`, or the home without one."""
        return (self.data_folder or self.home).expanduser().absolute()

    @property
    def public_hosts(self) -> list[str]:
        """Host names under which other machines reach the service."""
        return [*filter(None, [urlsplit(self.public_url).hostname]), *self.public_names]

    @model_validator(mode="before")
    @classmethod
    def _nest_limits(cls, values: dict[str, object]) -> dict[str, object]:
        own = {name: value for name, value in values.items() if name not in LIMITS}
        limits = {name: value for name, value in values.items() if name in LIMITS}
        return own | ({"limits": limits} if limits else {})


LIMITS = frozenset(field.name for field in fields(Limits))


def setting_names() -> list[str]:
    """All keys that `config.toml` may have."""
    return [*(name for name in Settings.model_fields if name != "limits"), *sorted(LIMITS)]


def default_home() -> Path:
    return Path(os.environ.get("SARTO_HOME") or platformdirs.user_data_dir("sarto", appauthor=False))


def load(home: Path | None = None, environ: Mapping[str, str] | None = None, **options: object) -> Settings:
    """Command line over environment over `config.toml` over defaults. Raises InvalidArgument naming the bad key."""
    environ = os.environ if environ is None else environ
    home = (home or Path(environ.get("SARTO_HOME") or default_home())).expanduser().absolute()
    values: dict[str, object] = {}
    config = home / "config.toml"
    if config.exists():
        values.update(read_toml(config))
    if "limits" in values:
        raise InvalidArgument(f"Settings ({config}): limits: there is no such table; write its keys beside the others.")
    for name in setting_names():
        text = environ.get(f"SARTO_{name.upper()}")
        if text is not None and name != "home":
            values[name] = text
    values.update({name: value for name, value in options.items() if value is not None})
    try:
        return Settings(home=home, **values)
    except ValidationError as error:
        if "run_without_network" in values:
            raise InvalidArgument(f"Settings ({config}): run_without_network is now run_confinement.") from None
        paths = [[str(part) for part in e["loc"] if part != "limits"] for e in error.errors()]
        faults = "; ".join(f"{'.'.join(path)}: {e['msg']}" for path, e in zip(paths, error.errors(), strict=True))
        raise InvalidArgument(f"Settings ({config} or SARTO_… variables): {faults}") from None
