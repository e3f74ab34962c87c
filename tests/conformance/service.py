"""The real service as a child process over the tiny base, for the tuning conformance tests: no mocks, a real port."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import httpx
import jwt
from cryptography.hazmat.primitives.asymmetric import rsa
from google.oauth2 import service_account

from tests.tiny import make_tiny_base

SCOPES = ["https://www.googleapis.com/auth/cloud-platform"]
CATALOG = """
[[weights]]
id = "tiny"
title = "Tiny"
family = "llama"
license = "none"
context = 2048
learning_rate = 1e-2

[[model]]
names = ["gemini-2.0-flash-001", "gemini-2.5-flash", "gemini-2.5-flash-lite"]
weights = "tiny"
adapter_sizes = [1, 2, 4, 8]
default_adapter_size = 4

[[model]]
names = ["translation-llm-002"]
kind = "translation"
weights = "tiny"
adapter_sizes = [4]
default_adapter_size = 4

[[model]]
names = ["qwen/qwen3@qwen3-0.6b"]
kind = "open"
weights = "tiny"
adapter_sizes = [1, 2, 4, 8, 16]
default_adapter_size = 16
"""
JUDGE = """
[[judges]]
name = "{name}"
kind = "{kind}"
base_url = "{url}"
model = "{model}"
key_variable = "JUDGE_KEY"
private_address = true
"""
ISSUER = "https://login.example.com"
PROVIDER = """
[[oidc_issuers]]
issuer = "{issuer}"
audience = "sarto"
jwks = "{jwks}"
"""
METADATA_ACCOUNT = "metadata-account@demo.iam.gserviceaccount.com"
MAIN = "from sarto.cli import main; main()"
ANSWERS = ["yes", "no", "maybe", "never"]


class Service:
    """`sarto serve` on a home whose model names all point at the tiny base."""

    def __init__(self, home: Path) -> None:
        self.home = home
        home.mkdir(parents=True, exist_ok=True)
        (home / "catalog.toml").write_text(CATALOG)
        make_tiny_base(home / "models" / "tiny")
        self._provider_key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        row = jwt.algorithms.RSAAlgorithm.to_jwk(self._provider_key.public_key(), as_dict=True)
        (home / "jwks.json").write_text(json.dumps({"keys": [row | {"kid": "k1", "use": "sig"}]}))
        self._provider = PROVIDER.format(issuer=ISSUER, jwks=home / "jwks.json")
        (home / "config.toml").write_text(self._provider)
        self.key_file = home / "credentials" / "admin.json"
        self.address = ""
        self._child: subprocess.Popen[bytes] | None = None

    def write_judges(self, judges: Iterable[tuple[str, str, str, str]]) -> None:
        """Name, form, address and model of judges elsewhere, into the configuration."""
        names = ("name", "kind", "url", "model")
        tables = [JUDGE.format(**dict(zip(names, judge, strict=True))) for judge in judges]
        config = 'default_judge = "outside/fair"\n' + self._provider + "".join(tables)
        (self.home / "config.toml").write_text(config)

    def start(self, *options: str, output: str = os.devnull, **environment: str) -> None:
        """Start it and wait until it answers; what it prints goes to the file `output`."""
        command = [sys.executable, "-c", MAIN, "serve", "--port", "0", "--home", str(self.home), *options]
        environ = {**os.environ, "OMP_NUM_THREADS": "1", "SARTO_MODELS_FOLDER": str(self.home / "models")}
        environ |= {"SARTO_METADATA_SERVER": METADATA_ACCOUNT, "SARTO_THREADS": "1", **environment}
        with Path(output).open("w") as file:
            self._child = subprocess.Popen(command, env=environ, stdout=file)
        deadline = time.monotonic() + 60
        try:
            while not (self.home / "address").exists():
                assert self._child.poll() is None and time.monotonic() < deadline, "the server did not start"
                time.sleep(0.02)  # the file is what scripts wait for
        except BaseException:
            self.kill()
            raise
        self.address = (self.home / "address").read_text().strip()

    def stop(self) -> int:
        assert self._child is not None
        self._child.send_signal(signal.SIGINT)
        try:
            return self._child.wait(20)
        finally:
            self._child.kill()  # one that goes on would outlive the test

    def kill(self) -> None:
        """As the kernel does: nobody is told."""
        assert self._child is not None
        self._child.kill()
        self._child.wait(20)

    @property
    def has_ended(self) -> bool:
        return self._child is None or self._child.poll() is not None

    @property
    def pid(self) -> int:
        assert self._child is not None
        return self._child.pid

    @property
    def port(self) -> str:
        return self.address.rpartition(":")[2]

    @property
    def key(self) -> dict[str, Any]:
        return dict(json.loads(self.key_file.read_bytes()))

    def credentials(self) -> service_account.Credentials:
        """The administrator's key, as every Google client reads it."""
        return service_account.Credentials.from_service_account_file(str(self.key_file), scopes=SCOPES)

    def give_metadata_account(self, http: httpx.Client) -> None:
        """The account that the metadata server speaks for, with what a program that tunes needs."""
        http.post("/v1/projects/demo/serviceAccounts", json={"accountId": "metadata-account"}).raise_for_status()
        policy = http.post("/v3/projects/demo:getIamPolicy", json={}).json()
        for role in ("roles/aiplatform.user", "roles/storage.admin"):
            policy["bindings"].append({"role": role, "members": [f"serviceAccount:{METADATA_ACCOUNT}"]})
        http.post("/v3/projects/demo:setIamPolicy", json={"policy": policy}).raise_for_status()

    def user_token(self, email: str, **claims: Any) -> str:
        """What the provider gives a user who has signed in there."""
        now = int(time.time())
        whole = {"iss": ISSUER, "aud": "sarto", "sub": email, "iat": now, "exp": now + 600}
        whole |= {"email": email, "email_verified": True} | claims
        return jwt.encode(whole, self._provider_key, "RS256", headers={"kid": "k1"})

    def token(self) -> str:
        from google.auth.transport.requests import Request

        credentials = self.credentials()
        credentials.refresh(Request())
        return str(credentials.token)

    def http(self) -> httpx.Client:
        """A plain HTTP client that holds a token."""
        return httpx.Client(base_url=self.address, headers={"Authorization": f"Bearer {self.token()}"}, timeout=60)


def training_rows(count: int = 12) -> bytes:
    """Short questions with one-word answers, in the documented format."""
    rows = []
    for i in range(count):
        question = {"role": "user", "parts": [{"text": f"q{i}"}]}
        rows.append({"contents": [question, {"role": "model", "parts": [{"text": ANSWERS[i % len(ANSWERS)]}]}]})
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def upload(http: httpx.Client, bucket: str, name: str, content: bytes) -> str:
    """Store an object through the storage API, making the bucket if need be; gives its URI."""
    if http.get(f"/storage/v1/b/{bucket}").status_code == 404:
        http.post("/storage/v1/b", params={"project": "demo"}, json={"name": bucket}).raise_for_status()
    answer = http.post(
        f"/upload/storage/v1/b/{bucket}/o", params={"uploadType": "media", "name": name}, content=content
    )
    answer.raise_for_status()
    return f"gs://{bucket}/{name}"


def wait_for(read: Any, seconds: float = 120.0) -> Any:
    """What `read` gives once it is true."""
    deadline = time.monotonic() + seconds
    while not (found := read()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.1)  # polling is the client's way
    return found
