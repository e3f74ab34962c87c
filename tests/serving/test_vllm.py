"""The vLLM client against a process that speaks vLLM's HTTP (tests/vllm_server.py); no GPU is needed, and no model."""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from sarto.configuration import Vllm
from sarto.contract.common import BaseWeights
from sarto.errors import FailedPrecondition, InvalidArgument, Unavailable
from sarto.schema.generation import FinishReason, GenerateContentRequest
from sarto.serving.generator import Target, collect
from sarto.serving.vllm import generator as vllm
from sarto.serving.vllm.generator import Adapter, VllmGenerator, VllmOptions
from sarto.serving.vllm.process import VllmServer
from sarto.serving.worker.client import WorkerGenerator
from tests.serving.making import FILES, make_adapter, request
from tests.tiny import make_tiny_base
from tests.vllm_server import CALL, KEY, held, vllm_server


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> BaseWeights:
    return make_tiny_base(tmp_path_factory.mktemp("base") / "llama")


@asynccontextmanager
async def client(
    folder: Path, address: str, wanted: Sequence[Adapter] = (), server: VllmServer | None = None
) -> AsyncIterator[VllmGenerator]:
    worker = WorkerGenerator(folder, threads=1, question_files=FILES)

    async def announced() -> Sequence[Adapter]:
        return wanted

    made = VllmGenerator(
        VllmOptions(Vllm(weights="tiny", address=address, model="tiny"), KEY), worker, announced, server
    )
    keeping = asyncio.create_task(made.keep())
    try:
        yield made
    finally:
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)
        await made.close()
        await worker.close()


async def until(is_true: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not is_true():
            await asyncio.sleep(0.05)


async def said(generator: VllmGenerator, target: Target, asked: GenerateContentRequest) -> str:
    answer = await collect(generator.generate(target, asked))
    return "".join(part.text or "" for c in answer.candidates if c.content for part in c.content.parts)


def test_base_and_adapter_are_answered_by_token_ids_of_our_own_renderer(tmp_path: Path, base: BaseWeights) -> None:
    key = make_adapter(base, tmp_path / "adapter")
    adapter = Adapter(key.digest, key.folder)

    async def test() -> None:
        with vllm_server() as (address, _):
            async with client(tmp_path, address, [adapter]) as generator:
                plain, tuned = Target(base), Target(base, key.folder, key.digest)
                prompt = await generator._worker.render_prompt(plain, request())
                count = len(prompt.token_ids)
                assert await said(generator, plain, request()) == f"tiny read {count} tokens"
                whole = await collect(generator.generate(tuned, request(candidateCount=2, maxOutputTokens=2)))
                assert [c.finish_reason for c in whole.candidates] == [FinishReason.MAX_TOKENS] * 2
                assert whole.candidates[1].content is not None
                assert whole.candidates[1].content.parts[0].text == f"{adapter.name} read {count} "
                assert whole.usage_metadata is not None
                assert whole.usage_metadata.total_token_count == count + 4

    asyncio.run(test())


def test_vllm_remembers_a_prompt_for_the_tenant_who_asked_it_alone(tmp_path: Path, base: BaseWeights) -> None:
    async def test() -> None:
        with vllm_server() as (address, _):
            async with client(tmp_path, address) as generator:
                answers = [await said(generator, Target(base, tenant=one), request()) for one in ("a", "b", "a", "")]
                assert [answer.split()[1] for answer in answers] == ["read", "read", "remembered", "read"]

    asyncio.run(test())


def test_adapters_follow_what_the_database_says_also_after_vllm_has_started_anew(
    tmp_path: Path, base: BaseWeights
) -> None:
    adapters = []
    for number in range(3):
        key = make_adapter(base, tmp_path / str(number), seed=number)
        adapters.append(Adapter(key.digest, key.folder))
    names = [adapter.name for adapter in adapters]
    wanted = adapters[:2]

    async def test() -> None:
        with vllm_server() as (address, first):
            async with client(tmp_path, address, wanted):
                await until(lambda: held(address) == set(names[:2]))
                wanted[:] = adapters[1:]
                await until(lambda: held(address) == set(names[1:]))
                first.kill()
                first.wait()
                with vllm_server(int(address.rpartition(":")[2])) as (again, _):
                    assert again == address
                    await until(lambda: held(address) == set(names[1:]))

    asyncio.run(test())


def test_an_adapter_that_vllm_refuses_or_is_not_given_is_an_error_with_the_reason(
    tmp_path: Path, base: BaseWeights
) -> None:
    key = make_adapter(base, tmp_path / "adapter", rank=32)

    async def test() -> None:
        with vllm_server() as (address, _):
            async with client(tmp_path, address, [Adapter(key.digest, key.folder)]) as generator:
                with pytest.raises(FailedPrecondition, match="rank 32 is greater"):
                    await said(generator, Target(base, key.folder, key.digest), request())
                with pytest.raises(FailedPrecondition, match="not served by vLLM"):
                    await said(generator, Target(base, key.folder, "0" * 64), request())

    asyncio.run(test())


WEATHER = {
    "name": "weather",
    "parameters": {
        "type": "OBJECT",
        "properties": {"city": {"type": "STRING", "enum": ["Rome"]}},
        "required": ["city"],
    },
}
TOOLS = [{"functionDeclarations": [WEATHER, {"name": "other"}]}]


async def parts(generator: VllmGenerator, base: BaseWeights, **more: Any) -> list[dict[str, Any]]:
    config = {"maxOutputTokens": 200} | more.pop("generationConfig", {})
    asked = GenerateContentRequest.read({**request().to_json(), "generationConfig": config, **more})
    (candidate,) = (await collect(generator.generate(Target(base), asked))).candidates
    assert candidate.finish_reason is FinishReason.STOP
    assert candidate.content is not None
    return [part.to_json() for part in candidate.content.parts]


def test_schemas_enums_and_calls_reach_vllm_as_the_grammar_our_worker_would_follow(
    tmp_path: Path, base: BaseWeights
) -> None:
    async def test() -> None:
        with vllm_server() as (address, _):
            async with client(tmp_path, address) as generator:
                config = {"responseMimeType": "application/json", "responseSchema": WEATHER["parameters"]}
                assert await parts(generator, base, generationConfig=config) == [{"text": '{"city":"Rome"}'}]
                config = {
                    "responseMimeType": "text/x.enum",
                    "responseSchema": {"type": "STRING", "enum": ["yes", "yé"]},
                }
                assert await parts(generator, base, generationConfig=config) in ([{"text": "yes"}], [{"text": "yé"}])
                forced = {"functionCallingConfig": {"mode": "ANY", "allowedFunctionNames": ["weather"]}}
                call = {"functionCall": {"name": "weather", "args": {"city": "Rome"}}}
                assert await parts(generator, base, tools=TOOLS, toolConfig=forced) == [call]
                seed = {"generationConfig": {"seed": 9}}
                free = await parts(generator, base, tools=TOOLS, **seed)
                oslo = {"functionCall": {"name": "weather", "args": {"city": "Oslo"}}}
                assert free == [{"text": "Let me see. "}, oslo]
                never = {"functionCallingConfig": {"mode": "NONE"}}
                (text,) = await parts(generator, base, tools=TOOLS, toolConfig=never, **seed)
                assert text == {"text": "Let me see. " + CALL}

    asyncio.run(test())


@pytest.mark.parametrize("count", [0, 1])
def test_log_probabilities_have_text_and_id_and_leave_out_the_end(
    tmp_path: Path, base: BaseWeights, count: int
) -> None:
    async def test() -> None:
        with vllm_server() as (address, _):
            async with client(tmp_path, address) as generator:
                asked = request(responseLogprobs=True, **({"logprobs": count} if count else {}))
                (candidate,) = (await collect(generator.generate(Target(base), asked))).candidates
                texts = await generator._worker.token_texts(Target(base), [7, 10, 11, 12])
                found = candidate.logprobs_result
                assert found is not None
                chosen = [(one.token, one.token_id, one.log_probability) for one in found.chosen_candidates]
                assert chosen == [(texts[1], 10, -1.0), (texts[2], 11, -2.0), (texts[3], 12, -3.0)]
                tops = [[(one.token, one.token_id) for one in top.candidates] for top in found.top_candidates]
                assert tops == [[(texts[0], 7)] if count else []] * 3

    asyncio.run(test())


def test_a_vllm_that_would_ignore_salts_and_grammars_is_refused(tmp_path: Path, base: BaseWeights) -> None:
    async def test() -> None:
        with vllm_server(version="0.10.2") as (address, _):
            async with client(tmp_path, address) as generator:
                for form in ({}, {"responseMimeType": "application/json"}):
                    with pytest.raises(FailedPrecondition, match=r"vLLM 0\.10\.2 cannot .*0\.11 or newer"):
                        await parts(generator, base, generationConfig=form)

    asyncio.run(test())


@pytest.mark.parametrize(
    ("more", "field"),
    [
        ({"generationConfig": {"logprobs": 2}}, "logprobs"),
        ({"generationConfig": {"responseSchema": {"type": "STRING"}}}, "response_schema"),
        ({"generationConfig": {"responseMimeType": "application/json", "responseSchema": {"type": "X"}}}, "schema"),
        ({"toolConfig": {"functionCallingConfig": {"mode": "ANY"}}}, "mode"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_its_field(
    tmp_path: Path, base: BaseWeights, more: dict[str, Any], field: str
) -> None:
    async def test() -> None:
        async with client(tmp_path, "http://127.0.0.1:9") as generator:
            asked = GenerateContentRequest.read({**request().to_json(), **more})
            with pytest.raises(InvalidArgument, match=field):
                await said(generator, Target(base), asked)

    asyncio.run(test())


def test_a_server_that_is_gone_or_breaks_off_is_unavailable_and_a_caller_that_leaves_stops_it(
    tmp_path: Path, base: BaseWeights
) -> None:
    async def test() -> None:
        with vllm_server() as (address, process):
            async with client(tmp_path, address) as generator:
                with pytest.raises(Unavailable, match="before it was whole"):
                    await said(generator, Target(base), request(seed=8))
                answers = generator.generate(Target(base), request(seed=7))
                await anext(answers)
                await answers.aclose()
                assert (await asyncio.to_thread(httpx.get, f"{address}/hung-up", timeout=20)).json()["hungUp"]
                with pytest.raises(Unavailable, match=r"does not answer|before it was whole"):
                    async for _ in generator.generate(Target(base), request(seed=7)):
                        process.kill()
                with pytest.raises(Unavailable, match="does not answer"):
                    await said(generator, Target(base), request())

    asyncio.run(test())


ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:9/\r\nContent-Length: 0\r\n\r\n", "HTTP 302"),
        (ANSWER + b"Content-Length: 2\r\n\r\n[]", "as vLLM does"),
        (ANSWER + b"\r\n" + b"x" * (9 << 20), "answered more than"),
        (ANSWER + b"Content-Length: 200\r\n\r\n", "does not answer"),
    ],
    ids=["redirect", "odd", "huge", "never whole"],
)
def test_what_is_no_vllm_is_unavailable_within_the_time_of_a_call(
    tmp_path: Path, base: BaseWeights, monkeypatch: pytest.MonkeyPatch, answer: bytes, words: str
) -> None:
    monkeypatch.setattr(vllm, "CALL_SECONDS", 2.0)

    is_over = asyncio.Event()
    serving: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serving.add(asyncio.current_task())  # type: ignore[arg-type]
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        with suppress(ConnectionError):
            while not is_over.is_set():  # drips until the other side has enough
                writer.write(b" ")
                await writer.drain()
                await asyncio.sleep(0.1)
        writer.transport.abort()
        await asyncio.gather(writer.wait_closed(), return_exceptions=True)

    async def test() -> None:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        async with server:
            port = server.sockets[0].getsockname()[1]
            async with client(tmp_path, f"http://127.0.0.1:{port}") as generator:
                with pytest.raises(Unavailable, match=words):
                    await said(generator, Target(base), request())
            is_over.set()
            await asyncio.gather(*serving, return_exceptions=True)

    asyncio.run(test())


def test_a_server_of_our_own_is_started_and_started_again(tmp_path: Path, base: BaseWeights) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    key = make_adapter(base, tmp_path / "adapter")
    environment = {"PYTHONPATH": str(Path(__file__).parents[2])}
    server = VllmServer([sys.executable, "-m", "tests.vllm_server", str(port)], tmp_path / "vllm.log", environment)

    def is_held() -> bool:
        try:
            return held(address) == {Adapter(key.digest, key.folder).name}
        except httpx.HTTPError:
            return False

    async def test() -> None:
        async with client(tmp_path, address, [Adapter(key.digest, key.folder)], server):
            await until(is_held)
            assert server.pid is not None
            first = server.pid
            server.kill()
            await until(lambda: server.pid != first and is_held())
        assert not is_held()

    asyncio.run(test())
