"""What of vLLM's HTTP the client uses, as a process with a real port and no model: models, adapters, completions.

An answer says who gives it and how many tokens it was given, of a prompt that this server had under the same salt that
it is remembered; one that must follow a grammar is what llguidance, which
vLLM uses for it, lets through byte by byte. With seed 7 it never ends; with seed 8 it breaks off, with seed 9 it calls.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
from llguidance import LLMatcher, LLTokenizer, grammar_from

KEY = "vllm-key-0123456789"
CONTEXT = 2048
VERSION = "0.14.0"
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>'


@contextmanager
def vllm_server(port: int = 0, version: str = VERSION) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Its address, and the process; it ends with the block."""
    environment = {**os.environ, "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True"}
    command = [sys.executable, "-m", "tests.vllm_server", str(port), version]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert child.stdout is not None
    try:
        yield child.stdout.readline().strip(), child
    finally:
        child.kill()
        child.wait()
        child.stdout.close()


def held(address: str) -> set[str]:
    rows = httpx.get(f"{address}/v1/models", headers={"Authorization": f"Bearer {KEY}"}).json()["data"]
    return {row["id"] for row in rows} - {"tiny"}


class _Handler(BaseHTTPRequestHandler):
    adapters: dict[str, str] = {}
    hung_up = threading.Event()
    remembered: set[str] = set()

    def do_GET(self) -> None:
        if self.path == "/hung-up":
            self._answer(200, {"hungUp": self.hung_up.wait(10)})
        elif self.path == "/version":
            self._answer(200, {"version": sys.argv[2] if len(sys.argv) > 2 else VERSION})
        elif self._is_let_in():
            base = {"id": "tiny", "max_model_len": CONTEXT, "parent": None}
            rows = [{"id": name, "root": path, "parent": "tiny"} for name, path in self.adapters.items()]
            self._answer(200, {"object": "list", "data": [base, *rows]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if not self._is_let_in():
            return
        if self.path == "/v1/load_lora_adapter":
            self._load(body)
        elif self.path == "/v1/unload_lora_adapter":
            self.adapters.pop(body["lora_name"])
            self._answer(200, "Success")
        elif body["model"] not in {"tiny", *self.adapters}:
            self._fail(404, f"The model `{body['model']}` does not exist.")
        else:
            self._complete(body)

    def _load(self, body: dict[str, Any]) -> None:
        folder = Path(body["lora_path"])
        if "VLLM_ALLOW_RUNTIME_LORA_UPDATING" not in os.environ:
            self._fail(404, "Not Found")
        elif not (folder / "adapter_config.json").exists():
            self._fail(400, f"No adapter found for {folder}")
        elif json.loads((folder / "adapter_config.json").read_text())["r"] > 16:
            self._fail(400, "LoRA rank 32 is greater than max_lora_rank 16.")
        else:
            self.adapters[body["lora_name"]] = str(folder)
            self._answer(200, "Success")

    def _complete(self, body: dict[str, Any]) -> None:
        assert body["stream"] and all(isinstance(token, int) for token in body["prompt"])
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.end_headers()
        prompt = json.dumps([body.get("cache_salt"), body["model"], body["prompt"]])
        verb = "remembered" if prompt in self.remembered else "read"
        self.remembered.add(prompt)
        words = [f"{body['model']} ", f"{verb} {len(body['prompt'])} ", "tokens"]
        if "structured_outputs" in body:
            words = list(_follow(body["structured_outputs"]["grammar"]))
        elif body.get("seed") == 9:
            words = ["Let me see. ", *CALL]
        words = words[: body["max_tokens"]]
        for number, word in enumerate(words):
            for index in range(body["n"]):
                last = number == len(words) - 1 and body.get("seed") not in (7, 8)
                reason = ("length" if len(words) == body["max_tokens"] else "stop") if last else None
                choice = {"index": index, "text": word, "finish_reason": reason}
                if "logprobs" in body:
                    assert body["return_tokens_as_token_ids"]
                    choice["logprobs"] = _logprobs(number, body["logprobs"], body["stop_token_ids"] if reason else [])
                self._send({"choices": [choice]})
        if body.get("seed") == 8:
            return
        while body.get("seed") == 7:
            try:
                self._send({"choices": [{"index": 0, "text": "…", "finish_reason": None}]})
            except OSError:
                self.hung_up.set()
                return
            time.sleep(0.02)  # the pace of a model
        total = len(words) * body["n"]
        usage = {"prompt_tokens": len(body["prompt"]), "completion_tokens": total}
        self._send({"choices": [], "usage": {**usage, "total_tokens": len(body["prompt"]) + total}})
        self.wfile.write(b"data: [DONE]\n\n")

    def _send(self, piece: dict[str, Any]) -> None:
        self.wfile.write(b"data: " + json.dumps(piece).encode() + b"\n\n")
        self.wfile.flush()

    def _is_let_in(self) -> bool:
        if self.headers.get("authorization") == f"Bearer {KEY}":
            return True
        self._fail(401, "Unauthorized")
        return False

    def _fail(self, status: int, message: str) -> None:
        self._answer(status, {"error": {"message": message, "type": "BadRequestError", "code": status}})

    def _answer(self, status: int, body: Any) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """Nobody reads it."""


def _logprobs(number: int, top: int, ends: list[int]) -> dict[str, Any]:
    """Token `number` with log probability -1 - number beside the likelier one before it, then the end. As in vLLM the
    token itself is always among the likeliest, one more than asked for if need be."""
    ids = [number + 10, *ends[:1]]
    chosen = [-1.0 - index for index in range(number, number + len(ids))]
    likelier = [{f"token_id:{one}": value, "token_id:7": value + 0.5} for one, value in zip(ids, chosen, strict=True)]
    shown = [dict(list(each.items())[: top + 1]) for each in likelier]
    return {"tokens": [f"token_id:{one}" for one in ids], "token_logprobs": chosen, "top_logprobs": shown}


def _follow(grammar: str) -> str:
    """The first answer in the order of bytes that the grammar lets through, without space that it does not need."""
    matcher = LLMatcher(LLTokenizer("byte"), grammar_from("grammar", grammar))
    assert not matcher.is_error(), matcher.get_error()
    found = bytearray()
    while not matcher.is_stopped():
        bits = matcher.compute_bitmask()
        allowed = [byte for byte in range(256) if bits[byte // 8] >> byte % 8 & 1]
        if not allowed:
            break
        byte = next((each for each in allowed if each not in b" \n"), allowed[0])
        matcher.consume_token(byte)
        found.append(byte)
    return found.decode()


def main() -> None:
    server = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), _Handler)
    print(f"http://127.0.0.1:{server.server_port}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
