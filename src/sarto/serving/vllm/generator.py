"""A `Generator` over a vLLM server that serves one base, with the adapters of all models on it.

Our own preparation processes render a request. The prompt is sent to vLLM as token ids, so that vLLM gets exactly the
tokens of training. The form of the response is sent as the grammar that our worker would use. `keep` repeatedly
compares the database (`wanted`) with the adapters in vLLM, so either may restart. Adapters are named by their digests;
no name of a client is sent to vLLM.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import httpx
import orjson

from sarto.configuration import Vllm
from sarto.errors import RETRY_INFO, FailedPrecondition, InvalidArgument, ResourceExhausted, SartoError, Unavailable
from sarto.schema.generation import GenerateContentRequest, GenerateContentResponse, GenerationConfig
from sarto.serving.generator import Target
from sarto.serving.vllm.process import VllmServer
from sarto.serving.vllm.stream import ReplyStream, usage_of
from sarto.serving.worker.client import WorkerGenerator

logger = logging.getLogger(__name__)
PREFIX = "sarto-"
"""Prefix of our adapters' names in vLLM; other adapters are not touched."""
SECONDS = 2.0
CALL_SECONDS = 30.0
"""Timeout of a call other than a generation."""
MOST_ANSWER_BYTES = 8 << 20
"""Largest response of a call other than a generation, and longest line of a generation."""
SINCE = (0, 11)
"""The first vLLM that supports `cache_salt` for completions and `structured_outputs`; an older one ignores both without
an error."""


@dataclass(frozen=True)
class Adapter:
    """A required adapter in vLLM: the digest of its bytes, and its PEFT folder on vLLM's machine."""

    digest: str
    folder: str

    @property
    def name(self) -> str:
        return PREFIX + self.digest


@dataclass(frozen=True)
class VllmOptions:
    server: Vllm
    key: str = ""
    queue_limit: int = 256


class VllmGenerator:
    """Generation by vLLM. All calls must come from one event loop. `worker` renders prompts; `server` is the process
    that we start, or None."""

    def __init__(
        self,
        options: VllmOptions,
        worker: WorkerGenerator,
        announced: Callable[[], Awaitable[Sequence[Adapter]]],
        server: VllmServer | None = None,
    ) -> None:
        self._options, self._worker, self._announced, self._server = options, worker, announced, server
        headers = {"Authorization": f"Bearer {options.key}"} if options.key else {}
        timeout = httpx.Timeout(600.0, connect=5.0)
        self._http = httpx.AsyncClient(
            base_url=options.server.address, headers=headers, timeout=timeout, trust_env=False
        )
        self._context = 0
        self._faults: dict[str, str] = {}
        self._in_flight: Counter[str] = Counter()
        """Number of requests at vLLM, by project."""
        self._was_there = True
        self._loading = asyncio.Lock()

    async def keep(self) -> None:
        """Run forever: start vLLM if it is ours and not running, and load and unload adapters as the database
        requires."""
        while True:
            try:
                if self._server is not None:
                    await self._server.keep()
                await self._reconcile()
                self._was_there = True
            except (SartoError, httpx.HTTPError) as error:
                if self._was_there:
                    logger.warning(
                        "vLLM cannot be reached", extra={"address": self._options.server.address, "error": str(error)}
                    )
                self._was_there = False
            await asyncio.sleep(SECONDS)

    async def generate(
        self, target: Target, request: GenerateContentRequest
    ) -> AsyncGenerator[GenerateContentResponse]:
        body = _read(request)
        self._check_room(target)
        self._in_flight[target.asker] += 1
        try:
            form = await self._worker.render_prompt(target, request)
            await self._check_version()
            body |= {"prompt": form.token_ids, "stop_token_ids": form.end_ids}
            body["model"] = await self._name(target)
            if target.tenant:
                body["cache_salt"] = target.tenant
            if form.grammar:
                body["structured_outputs"] = {"grammar": form.grammar}
            pieces = ReplyStream(body["n"], form.functions, form.end_ids, body.get("logprobs"))
            async with aclosing(self._answers(target, body, pieces)) as answers:
                async for answer in answers:
                    yield answer
        finally:
            self._in_flight[target.asker] -= 1

    def _check_room(self, target: Target) -> None:
        """Raises ResourceExhausted when too many requests are at vLLM, or half of them are this project's."""
        limit, count, own = self._options.queue_limit, self._in_flight.total(), self._in_flight[target.asker]
        if count >= limit or own >= max(1, limit // 2):
            detail = {"@type": RETRY_INFO, "retryDelay": "2s"}
            raise ResourceExhausted(f"{count} requests are at vLLM already; try again in a moment.", [detail])

    async def close(self) -> None:
        await self._http.aclose()
        if self._server is not None:
            await self._server.close()

    async def _name(self, target: Target) -> str:
        """vLLM's name of the target; loads its adapter if needed."""
        name = PREFIX + target.adapter_digest
        async with self._loading:
            held = await self._held()
            if not target.adapter_digest:
                return self._options.server.model
            if name not in held:
                adapters = [adapter for adapter in await self._announced() if adapter.digest == target.adapter_digest]
                if not adapters:
                    raise FailedPrecondition(
                        "This model is not served by vLLM: its adapter is encrypted under a customer key. "
                        "Serve it with Sarto's own worker."
                    )
                await self._load(adapters[0])
        return name

    async def _reconcile(self) -> None:
        async with self._loading:
            announced = {adapter.name: adapter for adapter in await self._announced()}
            newest = list(announced)[: self._options.server.max_adapters]
            held = await self._held()
            for name in held - set(announced):
                await self._call("/v1/unload_lora_adapter", {"lora_name": name})
                logger.info("adapter unloaded from vLLM", extra={"adapter": name})
            for name in newest:
                if name not in held and name not in self._faults:
                    try:
                        await self._load(announced[name])
                    except FailedPrecondition as error:
                        logger.warning("vLLM refused an adapter", extra={"adapter": name, "error": str(error)})
            self._faults = {name: fault for name, fault in self._faults.items() if name in announced}

    async def _held(self) -> set[str]:
        """Our adapters in vLLM; none after a restart of the server."""
        reply = await self._call("/v1/models", None)
        try:
            models = [row for row in orjson.loads(reply)["data"] if isinstance(row["id"], str)]
            for row in models:
                if row["id"] == self._options.server.model:
                    self._context = int(row.get("max_model_len") or 0)
        except (ValueError, TypeError, KeyError, AttributeError):
            raise self._odd("/v1/models") from None
        if not self._context:
            names = ", ".join(row["id"] for row in models)
            raise Unavailable(f"vLLM serves no {self._options.server.model} but {names}; set `model` of [[vllm]].")
        return {row["id"] for row in models if row["id"].startswith(PREFIX)}

    async def _load(self, adapter: Adapter) -> None:
        try:
            await self._call("/v1/load_lora_adapter", {"lora_name": adapter.name, "lora_path": adapter.folder})
        except InvalidArgument as error:
            self._faults[adapter.name] = str(error)
            raise FailedPrecondition(f"vLLM cannot load this model's adapter: {error}") from None
        self._faults.pop(adapter.name, None)
        logger.info("adapter loaded into vLLM", extra={"adapter": adapter.name})

    async def _call(self, path: str, body: dict[str, Any] | None) -> bytes:
        method = "GET" if body is None else "POST"
        try:
            async with asyncio.timeout(CALL_SECONDS), self._http.stream(method, path, json=body) as answer:
                content = await _whole(answer)
        except (httpx.HTTPError, TimeoutError) as error:
            raise self._gone(error) from None
        if not answer.is_success:
            raise _fault(answer.status_code, content)
        return content

    async def _check_version(self) -> None:
        reply = await self._call("/version", None)
        try:
            version = str(orjson.loads(reply)["version"])
        except (ValueError, TypeError, KeyError):
            raise self._odd("/version") from None
        numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdecimal())
        if numbers < SINCE:
            least = ".".join(map(str, SINCE))
            raise FailedPrecondition(
                f"vLLM {version} cannot keep the prompts of projects apart or be held to a schema; {least} or newer "
                "can. Update it, or serve this model with Sarto's own worker."
            )

    async def _texts(self, target: Target, ids: list[int]) -> dict[int, str]:
        if not ids:
            return {}
        return dict(zip(ids, await self._worker.token_texts(target, ids), strict=True))

    async def _answers(
        self, target: Target, body: dict[str, Any], pieces: ReplyStream
    ) -> AsyncGenerator[GenerateContentResponse]:
        """vLLM's chunks; the last one is held back until its token counts are known."""
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
                if not answer.is_success:
                    raise _fault(answer.status_code, await _whole(answer))
                async for line in _lines(answer):
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
        except (orjson.JSONDecodeError, KeyError, TypeError):
            raise self._odd("/v1/completions") from None
        if not is_whole or held is None:
            raise Unavailable("vLLM ended the answer before it was whole. Try again.")
        yield held

    def _odd(self, path: str) -> Unavailable:
        return Unavailable(
            f"{self._options.server.address}{path} does not answer as vLLM does; see `address` of [[vllm]]."
        )

    def _gone(self, error: Exception) -> Unavailable:
        return Unavailable(
            f"vLLM at {self._options.server.address} does not answer ({type(error).__name__}). Try again."
        )


async def _whole(answer: httpx.Response) -> bytes:
    """The body of a response. Raises Unavailable if it is too long."""
    buffer = bytearray()
    async for piece in answer.aiter_bytes():
        buffer += piece
        if len(buffer) > MOST_ANSWER_BYTES:
            raise Unavailable(f"vLLM answered more than {MOST_ANSWER_BYTES} bytes.")
    return bytes(buffer)


async def _lines(answer: httpx.Response) -> AsyncGenerator[str]:
    """The lines of a streamed response. Raises Unavailable for a line that is too long."""
    held = bytearray()
    async for piece in answer.aiter_bytes():
        *whole, rest = piece.split(b"\n")
        for end in whole:
            yield (held + end).decode(errors="replace")
            held.clear()
        held += rest
        if len(held) > MOST_ANSWER_BYTES:
            raise Unavailable(f"vLLM answered a line of more than {MOST_ANSWER_BYTES} bytes.")


def _read(request: GenerateContentRequest) -> dict[str, Any]:
    """The parameters of generation in vLLM's form."""
    config = request.generation_config or GenerationConfig()
    body: dict[str, Any] = {
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
        body["max_tokens"] = config.max_output_tokens
    if config.seed is not None:
        body["seed"] = config.seed
    if config.response_logprobs:
        body |= {"logprobs": config.logprobs or 0, "return_tokens_as_token_ids": True}
    return body


def _fault(status: int, body: bytes) -> SartoError:
    try:
        error_body = orjson.loads(body)
        message = str((error_body.get("error") or error_body).get("message") or "no reason given")
    except (orjson.JSONDecodeError, AttributeError):
        message = body.decode(errors="replace")[:200] or "no reason given"
    if status < 400:
        return Unavailable(f"vLLM answered HTTP {status}: redirects are not followed; see `address` of [[vllm]].")
    if status == 429:
        return ResourceExhausted(f"vLLM: {message}", [{"@type": RETRY_INFO, "retryDelay": "2s"}])
    if status in (401, 403):
        return Unavailable("vLLM does not accept the key that Sarto has for it; see [[vllm]].")
    return InvalidArgument(f"vLLM: {message}") if status < 500 else Unavailable(f"vLLM: {message}")
