"""A real server over a tiny base, and the `sarto` program run against it as a user runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.tiny import make_tiny_base

SARTO = str(Path(sys.executable).with_name("sarto"))
CATALOG = """
[[weights]]
id = "tiny"
title = "Tiny"
family = "llama"
license = "Apache-2.0"
context = 2048
learning_rate = 1e-3

[[model]]
names = ["gemini-2.0-flash-001"]
weights = "tiny"
adapter_sizes = [1, 2, 4, 8]
default_adapter_size = 4
"""


@dataclass(frozen=True)
class Server:
    url: str
    home: Path

    @property
    def key_file(self) -> Path:
        return self.home / "credentials" / "admin.json"


Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    root = tmp_path_factory.mktemp("cli")
    home, weights = root / "home", root / "models"
    home.mkdir()
    (home / "catalog.toml").write_text(CATALOG)
    make_tiny_base(weights / "tiny")
    environment = {**os.environ, "SARTO_MODELS_FOLDER": str(weights), "SARTO_THREADS": "1"}
    command = [SARTO, "serve", "--home", str(home), "--port", "0"]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert child.stdout is not None
    try:
        for line in child.stdout:  # the welcome; ends early when the server does
            if line.startswith("Ctrl-C"):
                break
        yield Server((home / "address").read_text().strip(), home)
    finally:
        child.terminate()
        child.communicate(timeout=30)


@pytest.fixture
def sarto(server: Server, tmp_path: Path) -> Run:
    """`sarto ARGS` in an empty folder, with the server's address and key in the environment."""
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "SARTO_URL": server.url,
        "GOOGLE_APPLICATION_CREDENTIALS": str(server.key_file),
        "COLUMNS": "160",
    }

    def run(*arguments: str, stdin: str = "", **more: str) -> subprocess.CompletedProcess[str]:
        command = [SARTO, *arguments]
        return subprocess.run(
            command, input=stdin, capture_output=True, text=True, timeout=120, env=environment | more, cwd=tmp_path
        )

    return run


@pytest.fixture
def tickets(tmp_path: Path) -> Path:
    """A small training file."""
    rows = [
        {
            "contents": [
                {"role": "user", "parts": [{"text": f"say {n}"}]},
                {"role": "model", "parts": [{"text": str(n)}]},
            ]
        }
        for n in range(12)
    ]
    path = tmp_path / "tickets.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
