"""A `Generator` over a vLLM server that serves one base, with the adapters of all models on it loaded beside it.

A request is read by our own worker: its prompt goes to vLLM as token ids, so that vLLM answers exactly what training
had in front of it, and the form of the answer as the grammar that the worker itself would follow. Which adapters vLLM
must hold is asked of the database (`wanted`), again and again: whoever of the two restarts, `keep` brings them
together. Adapters are named by their bytes; no name of a client ever reaches vLLM.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import httpx
import orjson

from sarto.errors import (
    RETRY_INFO,
    FailedPrecondition,
    InvalidArgument,
    ResourceExhausted,
    SartoError,
    Unavailable,
)
from sarto.schema.generation import GenerateContentRequest, GenerateContentResponse, GenerationConfig
from sarto.serving.generator import Generator, Target
from sarto.serving.vllm_pieces import Pieces, usage_of
from sarto.serving.vllm_server import VllmServer

logger = logging.getLogger(__name__)
PREFIX = "sarto-"
"""Of every adapter's name in vLLM: what begins otherwise is not ours, and left alone."""
SECONDS = 2.0
GRAMMARS_SINCE = (0, 11)
"""vLLM's version that takes `structured_outputs`; an older one would ignore it."""


@dataclass(frozen=True)
class Adapter:
    """One that vLLM must hold: the digest of its bytes, and the PEFT folder as vLLM finds it."""

    digest: str
    folder: str

    @property
    def name(self) -> str:
        return PREFIX + self.digest


@dataclass(frozen=True)
class VllmOptions:
    """`model`: what vLLM calls the base. `max_adapters`: the newest that are loaded ahead of being asked for."""

    address: str
    model: str
    key: str = ""
    max_adapters: int = 64
    queue_limit: int = 256


class VllmGenerator:
    """All calls must come from one event loop. `worker` renders prompts; `server` is ours to start, or None."""

    def __init__(
        self,
        options: VllmOptions,
        worker: Generator,
        wanted: Callable[[], Awaitable[Sequence[Adapter]]],
        server: VllmServer | None = None,
    ) -> None:
        self._options, self._worker, self._wanted, self._server = options, worker, wanted, server
        headers = {"Authorization": f"Bearer {options.key}"} if options.key else {}
        timeout = httpx.Timeout(600.0, connect=5.0)
        self._http = httpx.AsyncClient(base_url=options.address, headers=headers, timeout=timeout, trust_env=False)
        self._context = 0
        self._faults: dict[str, str] = {}
        self._asked = 0
        self._was_there = True
        self._loading = asyncio.Lock()

    async def keep(self) -> None:
        """For ever: start vLLM where it is ours and not running, and load and unload what the database says."""
        while True:
            try:
                if self._server is not None:
                    await self._server.keep()
                await self._reconcile()
                self._was_there = True
            except (SartoError, httpx.HTTPError) as error:
                if self._was_there:
                    logger.warning(
                        "vLLM cannot be reached", extra={"address": self._options.address, "error": str(error)}
                    )
                self._was_there = False
            await asyncio.sleep(SECONDS)

    async def generate(
        self, target: Target, request: GenerateContentRequest
    ) -> AsyncGenerator[GenerateContentResponse]:
        body = _read(request)
        if self._asked >= self._options.queue_limit:
            detail = {"@type": RETRY_INFO, "retryDelay": "2s"}
            raise ResourceExhausted(f"{self._asked} requests are at vLLM already; try again in a moment.", [detail])
        self._asked += 1
        try:
            form = await self._worker.inspect(target, "prompt", request.to_json())
            body |= {"prompt": form["tokenIds"], "stop_token_ids": form["endIds"]}
            body["model"] = await self._name(target)
            if form["grammar"]:
                await self._check_grammars()
                body["structured_outputs"] = {"grammar": form["grammar"]}
            pieces = Pieces(body["n"], form["functions"], form["endIds"], body.get("logprobs"))
            async with aclosing(self._answers(target, body, pieces)) as answers:
                async for answer in answers:
                    yield answer
        finally:
            self._asked -= 1

    async def close(self) -> None:
        await self._http.aclose()
        if self._server is not None:
            await self._server.close()

    async def _name(self, target: Target) -> str:
        """What vLLM calls the target, which it holds by then."""
        name = PREFIX + target.adapter_digest
        async with self._loading:
            held = await self._held()
            if not target.adapter_digest:
                return self._options.model
            if name not in held:
                found = [adapter for adapter in await self._wanted() if adapter.digest == target.adapter_digest]
                if not found:
                    raise FailedPrecondition(
                        "This model is not among those that vLLM is given: its adapter is sealed under a customer key. "
                        "Serve it with Sarto's own worker."
                    )
                await self._load(found[0])
        return name

    async def _reconcile(self) -> None:
        async with self._loading:
            wanted = {adapter.name: adapter for adapter in await self._wanted()}
            newest = list(wanted)[: self._options.max_adapters]
            held = await self._held()
            for name in held - set(wanted):
                await self._call("/v1/unload_lora_adapter", {"lora_name": name})
                logger.info("adapter left vLLM", extra={"adapter": name})
            for name in newest:
                if name not in held and name not in self._faults:
                    try:
                        await self._load(wanted[name])
                    except FailedPrecondition as error:
                        logger.warning("vLLM refused an adapter", extra={"adapter": name, "error": str(error)})
            self._faults = {name: fault for name, fault in self._faults.items() if name in wanted}

    async def _held(self) -> set[str]:
        """Our adapters that vLLM has now; a server that restarted has none."""
        models = (await self._call("/v1/models", None)).json()["data"]
        for row in models:
            if row["id"] == self._options.model:
                self._context = int(row.get("max_model_len") or 0)
        if not self._context:
            names = ", ".join(row["id"] for row in models)
            raise Unavailable(f"vLLM serves no {self._options.model} but {names}; set `model` of [[vllm]].")
        return {row["id"] for row in models if row["id"].startswith(PREFIX)}

    async def _load(self, adapter: Adapter) -> None:
        try:
            await self._call("/v1/load_lora_adapter", {"lora_name": adapter.name, "lora_path": adapter.folder})
        except InvalidArgument as error:
            self._faults[adapter.name] = str(error)
            raise FailedPrecondition(f"vLLM cannot load this model's adapter: {error}") from None
        self._faults.pop(adapter.name, None)
        logger.info("adapter went to vLLM", extra={"adapter": adapter.name})

    async def _call(self, path: str, body: dict[str, Any] | None) -> httpx.Response:
        try:
            answer = await (self._http.get(path) if body is None else self._http.post(path, json=body))
        except httpx.HTTPError as error:
            raise self._gone(error) from None
        if answer.is_error:
            raise _fault(answer.status_code, answer.content)
        return answer

    async def _check_grammars(self) -> None:
        version = str((await self._call("/version", None)).json()["version"])
        numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdecimal())
        if numbers < GRAMMARS_SINCE:
            least = ".".join(map(str, GRAMMARS_SINCE))
            raise FailedPrecondition(
                f"vLLM {version} cannot be held to a schema or made to call a function; {least} or newer can. "
                "Ask for plain text, or serve this model with Sarto's own worker."
            )

    async def _texts(self, target: Target, ids: list[int]) -> dict[int, str]:
        if not ids:
            return {}
        found = await self._worker.inspect(target, "token_texts", {"tokenIds": ids})
        return dict(zip(ids, found["texts"], strict=True))

    async def _answers(
        self, target: Target, body: dict[str, Any], pieces: Pieces
    ) -> AsyncGenerator[GenerateContentResponse]:
        """vLLM's pieces; the last is held back until it is known what all of it counts."""
        room = self._context - len(body["prompt"])
        if room < 1:
            raise InvalidArgument.field(
                "contents", f"The prompt has {len(body['prompt'])} tokens; vLLM's context is {self._context}."
            )
        body["max_tokens"] = min(body.get("max_tokens") or room, room)
        held: GenerateContentResponse | None = None
        is_whole = False
        try:
            async with self._http.stream("POST", "/v1/completions", json=body) as answer:
                if answer.is_error:
                    raise _fault(answer.status_code, await answer.aread())
                async for line in answer.aiter_lines():
                    data = line.removeprefix("data:").strip() if line.startswith("data:") else ""
                    if not data:
                        continue
                    if data == "[DONE]":
                        is_whole = True
                        break
                    piece = orjson.loads(data)
                    if "error" in piece:
                        raise _fault(500, data.encode())
                    choices, usage = piece.get("choices", ()), usage_of(piece.get("usage"))
                    candidates = pieces.read(choices, await self._texts(target, pieces.token_ids(choices)))
                    if candidates:
                        if held is not None:
                            yield held
                        held = GenerateContentResponse(candidates=candidates)
                    if usage is not None and held is not None:
                        held.usage_metadata = usage
        except httpx.HTTPError as error:
            raise self._gone(error) from None
        if not is_whole or held is None:
            raise Unavailable("vLLM ended the answer before it was whole. Try again.")
        yield held

    def _gone(self, error: httpx.HTTPError) -> Unavailable:
        return Unavailable(f"vLLM at {self._options.address} does not answer ({type(error).__name__}). Try again.")


def _read(request: GenerateContentRequest) -> dict[str, Any]:
    """How to continue, in vLLM's words."""
    config = request.generation_config or GenerationConfig()
    found: dict[str, Any] = {
        "stream": True,
        "stream_options": {"include_usage": True},
        "n": config.candidate_count or 1,
        "temperature": 1.0 if config.temperature is None else config.temperature,
        "top_p": 0.95 if config.top_p is None else max(config.top_p, 1e-6),
        "top_k": 64 if config.top_k is None else int(config.top_k),
        "presence_penalty": config.presence_penalty or 0.0,
        "frequency_penalty": config.frequency_penalty or 0.0,
        "stop": config.stop_sequences,
        "skip_special_tokens": True,
    }
    if config.max_output_tokens is not None:
        found["max_tokens"] = config.max_output_tokens
    if config.seed is not None:
        found["seed"] = config.seed
    if config.response_logprobs:
        found |= {"logprobs": config.logprobs or 0, "return_tokens_as_token_ids": True}
    return found


def _fault(status: int, body: bytes) -> SartoError:
    try:
        found = orjson.loads(body)
        message = str((found.get("error") or found).get("message") or "no reason given")
    except (orjson.JSONDecodeError, AttributeError):
        message = body.decode(errors="replace")[:200] or "no reason given"
    if status == 429:
        return ResourceExhausted(f"vLLM: {message}", [{"@type": RETRY_INFO, "retryDelay": "2s"}])
    if status in (401, 403):
        return Unavailable("vLLM does not accept the key that Sarto has for it; see [[vllm]].")
    return InvalidArgument(f"vLLM: {message}") if status < 500 else Unavailable(f"vLLM: {message}")
