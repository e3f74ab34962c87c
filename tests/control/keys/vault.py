"""What a HashiCorp Vault's transit engine answers over HTTP, over base64 instead of a cipher, for the tests."""

from __future__ import annotations

import base64
import threading
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self

import orjson

from tests.served import served


class Vault:
    """Answers the token `root`, unless it `refuses`, and while it `speaks`."""

    def __init__(self) -> None:
        self.refuses, self.calls, self._stack = False, 0, ExitStack()
        self.speaks = threading.Event()
        self.speaks.set()
        vault = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                asked = orjson.loads(self.rfile.read(int(self.headers["Content-Length"])))
                vault.calls += 1
                vault.speaks.wait()
                if vault.refuses or self.headers["X-Vault-Token"] != "root":
                    self.send_response(403)
                    self.end_headers()
                    return
                if "/encrypt/" in self.path:
                    data = {"ciphertext": "vault:v1:" + base64.b64encode(asked["plaintext"].encode()).decode()}
                else:
                    data = {"plaintext": base64.b64decode(asked["ciphertext"].removeprefix("vault:v1:")).decode()}
                body = orjson.dumps({"data": data})
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_PUT = do_POST

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        self._stack.enter_context(served(self._server))
        return self

    def __exit__(self, *_: object) -> None:
        self.speaks.set()
        self._stack.close()
