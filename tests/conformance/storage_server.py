"""The real service as a child process, for the storage conformance tests: start, kill, start again on the same home."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
from google.cloud import storage
from google.oauth2 import service_account
from google.oauth2.credentials import Credentials

from sarto.control.access import account_store, projects
from sarto.storage.database.database import Database

SERVE = "import typer; from sarto.cli.serve import serve; typer.run(serve)"
SCOPES = ["https://www.googleapis.com/auth/cloud-platform"]


class Server:
    """`sarto serve` on `home`. The port stays the same over restarts, as session addresses hold it."""

    def __init__(self, home: Path) -> None:
        self.home = home
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.address = f"http://127.0.0.1:{self.port}"
        self.key_file = home / "credentials" / "admin.json"
        self._child: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._child is not None
        return self._child.pid

    def start(self) -> None:
        command = [sys.executable, "-c", SERVE, "--port", str(self.port), "--home", str(self.home)]
        environ = {**os.environ, "OMP_NUM_THREADS": "1"}
        self._child = subprocess.Popen(command, env=environ, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while True:
            try:
                httpx.get(f"{self.address}/healthz").raise_for_status()
                return
            except httpx.TransportError:
                assert self._child.poll() is None and time.monotonic() < deadline, "the server did not start"
                time.sleep(0.05)  # there is nothing to wait on but the port

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        if self._child is not None:
            self._child.send_signal(how)
            try:
                self._child.wait(30)
            finally:
                self._child.kill()  # one that goes on would outlive the test
                self._child = None

    def restart(self) -> None:
        """Killed without warning, then started on what it left."""
        self.stop(signal.SIGKILL)
        self.start()

    def peak_memory(self) -> int:
        """Most resident bytes of the process so far."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) * 1024

    def client(self) -> storage.Client:
        """The official client, with a token: with the key itself google-auth also asks a Google host for boundaries."""
        return storage.Client(
            project="demo", credentials=Credentials(self.token()), client_options={"api_endpoint": self.address}
        )

    def http(self, **headers: str) -> httpx.Client:
        """A plain HTTP client that holds the administrator's token."""
        return httpx.Client(base_url=self.address, headers={"Authorization": f"Bearer {self.token()}", **headers})

    def token(self) -> str:
        return self._token(json.loads(self.key_file.read_text()))

    def stranger(self) -> str:
        """A token of an owner of another project, which this makes."""
        database = Database.in_home(self.home)
        with database.transaction() as connection:
            now = time.time()
            project = projects.insert(connection, "elsewhere", now)
            account = account_store.create(connection, project, "stranger", "roles/owner", now)
            key = account_store.create_key(connection, account, project.id, now)
        database.close()
        return self._token(account_store.key_file(key, self.address))

    def _token(self, key: dict[str, Any]) -> str:
        credentials = service_account.Credentials.from_service_account_info(key, scopes=SCOPES)
        form = {"grant_type": "urn:ietf:params:oauth:grant-type:jwt-bearer"}
        form["assertion"] = credentials._make_authorization_grant_assertion().decode()
        return str(httpx.post(f"{self.address}/token", data=form).raise_for_status().json()["access_token"])
