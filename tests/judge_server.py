"""A judge on another machine, for tests: a process with a real port that speaks OpenAI's and Gemini's forms.

What it does goes by the model that is asked: `fair` scores by the length of the question, held to the schema it was
given; `wordy` answers in prose; `teacher` answers in one word; `full` has room at the second call only; `broken`,
`shut`, `strange`, `silent` are as they sound.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx

KEY = "judge-key-0123456789"


@contextmanager
def judge_server() -> Iterator[str]:
    """Its address; it ends with the block."""
    child = subprocess.Popen([sys.executable, "-m", "tests.judge_server"], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    try:
        yield child.stdout.readline().strip()
    finally:
        child.kill()
        child.wait()
        child.stdout.close()


def seen(address: str) -> list[dict[str, Any]]:
    """Every request so far: path, headers in lower case, body."""
    found: list[dict[str, Any]] = httpx.get(f"{address}/seen").json()
    return found


class _Handler(BaseHTTPRequestHandler):
    requests: list[dict[str, Any]] = []
    lock = threading.Lock()

    def do_GET(self) -> None:
        with self.lock:
            self._answer(200, self.requests)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        headers = {name.lower(): value for name, value in self.headers.items()}
        is_gemini = self.path.endswith(":generateContent")
        model = self.path.rpartition("/")[2].partition(":")[0] if is_gemini else body["model"]
        with self.lock:
            before = sum(request["model"] == model for request in self.requests)
            self.requests.append({"path": self.path, "headers": headers, "body": body, "model": model})
        key = headers.get("x-goog-api-key") if is_gemini else headers.get("authorization", "").removeprefix("Bearer ")
        if key != KEY or model == "shut":
            self._answer(401, {"error": {"message": f"Not with {key}."}})
        elif model == "broken":
            self._answer(500, {"error": {"message": "out of order"}})
        elif model == "full" and before == 0:
            self._answer(429, {"error": {"message": "too many"}}, {"retry-after": "0"})
        elif model == "strange":
            self._answer(200, ["hello"])
        elif model == "silent":
            threading.Event().wait(30)
        else:
            self._reply(body, is_gemini, model)

    def _reply(self, body: dict[str, Any], is_gemini: bool, model: str) -> None:
        if is_gemini:
            asked = body["contents"][-1]["parts"][0]["text"]
            schema = body["generationConfig"].get("responseSchema")
        else:
            asked = body["messages"][-1]["content"]
            schema = body.get("response_format", {}).get("json_schema", {}).get("schema")
        plain = {"wordy": "I like it.", "teacher": "yes"}
        text = plain[model] if model in plain else json.dumps(_value(schema, asked))
        if is_gemini:
            content = {"role": "model", "parts": [{"text": "hm", "thought": True}, {"text": text}]}
            self._answer(200, {"candidates": [{"content": content, "finishReason": "STOP"}], "modelVersion": "1"})
        else:
            message = {"role": "assistant", "content": text, "refusal": None}
            self._answer(200, {"id": "x", "choices": [{"index": 0, "message": message, "finish_reason": "stop"}]})

    def _answer(self, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"content-length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        """It is quiet."""


def _value(schema: dict[str, Any] | None, asked: str) -> Any:
    """Something the schema allows, the same for the same question."""
    if schema is None:
        return {"score": 3}
    kind = schema["type"].lower()
    if "enum" in schema:
        return schema["enum"][len(asked) % len(schema["enum"])]
    if kind == "object":
        return {name: _value(inner, asked) for name, inner in schema["properties"].items()}
    return len(asked) % 5 + 1 if kind == "number" else "so I find"


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    print(f"http://127.0.0.1:{server.server_address[1]}", flush=True)
    server.serve_forever()
