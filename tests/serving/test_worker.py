"""The worker process behind the Generator seam: real children, real kills."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import pytest

from sarto.contract.common import BaseWeights
from sarto.errors import InvalidArgument, Unavailable
from sarto.schema.generation import CountTokensRequest, GenerateContentRequest, GenerateContentResponse
from sarto.serving.generator import Target, collect
from sarto.serving.worker.client import WorkerGenerator
from sarto.serving.worker.program import MOST_GRAMMARS
from tests.serving.making import FILES, make_adapter, request
from tests.tiny import make_tiny_base


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> BaseWeights:
    return make_tiny_base(tmp_path_factory.mktemp("base") / "llama")


@asynccontextmanager
async def worker(folder: Path, **options: int) -> AsyncIterator[WorkerGenerator]:
    generator = WorkerGenerator(folder, threads=1, dtype="float32", question_files=FILES, **options)
    try:
        yield generator
    finally:
        await generator.close()


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(60):
            await test()

    asyncio.run(limited())


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"


async def until_dead(pid: int) -> None:
    async with asyncio.timeout(10):
        while is_alive(pid):
            await asyncio.sleep(0.02)


def test_many_requests_share_one_worker_and_the_others_questions_are_answered(
    tmp_path: Path, base: BaseWeights
) -> None:
    key = make_adapter(base, tmp_path / "adapter")
    plain, tuned = Target(base), Target(base, key.folder, key.digest)

    async def test() -> None:
        async with worker(tmp_path) as generator:
            assert generator.pid is None
            answers = await asyncio.gather(
                *(collect(generator.generate(target, request())) for target in (plain, tuned, plain, tuned))
            )
            texts = [answer.candidates[0].content.parts[0].text for answer in answers]  # type: ignore[union-attr]
            assert texts[0] == texts[2] != texts[1] == texts[3]
            assert answers[0].usage_metadata.candidates_token_count == 12  # type: ignore[union-attr]
            row = {"contents": [{"role": "user", "parts": [{"text": "Hello"}]}]}
            counted = await generator.count_tokens(plain, CountTokensRequest.read(row))
            assert counted.total_tokens == answers[0].usage_metadata.prompt_token_count  # type: ignore[union-attr]
            tokens = await generator.compute_tokens(plain, CountTokensRequest.read(row))
            assert len(tokens.ids) == len(tokens.texts) == counted.total_tokens
            metrics = await generator.metrics()
            assert metrics is not None and metrics["bases"][0]["adapters"]["resident"] == 1
            with pytest.raises(InvalidArgument, match="has no call"):
                await generator._query(None, "nonsense", {})
            with pytest.raises(InvalidArgument, match="temperature"):
                await collect(generator.generate(plain, request(temperature=9)))

    run(test)


def test_closing_a_stream_frees_its_place_for_the_next(tmp_path: Path, base: BaseWeights) -> None:
    async def test() -> None:
        async with worker(tmp_path) as generator:
            async with aclosing(generator.generate(Target(base), request(maxOutputTokens=1900))) as stream:
                async for _ in stream:
                    break
            await collect(generator.generate(Target(base), request()))
            metrics = await generator.metrics()
            assert metrics is not None and metrics["bases"][0]["generatedTokens"] < 1900

    run(test)


def test_a_killed_worker_fails_what_was_in_flight_and_the_next_request_starts_another(
    tmp_path: Path, base: BaseWeights
) -> None:
    async def test() -> None:
        async with worker(tmp_path) as generator:
            seen: list[GenerateContentResponse] = []
            first = generator.pid
            with pytest.raises(Unavailable, match="ended unexpectedly"):
                async for chunk in generator.generate(Target(base), request(maxOutputTokens=1900)):
                    seen.append(chunk)
                    first = generator.pid
                    assert first is not None
                    os.kill(first, signal.SIGKILL)
            assert seen
            answer = await collect(generator.generate(Target(base), request()))
            assert answer.candidates[0].finish_reason == "MAX_TOKENS"
            assert generator.pid != first

    run(test)


def test_close_ends_the_worker_at_once_and_what_it_was_doing(tmp_path: Path, base: BaseWeights) -> None:
    async def test() -> None:
        async with worker(tmp_path) as generator:
            stream = generator.generate(Target(base), request(maxOutputTokens=1900))
            await anext(stream)
            pid = generator.pid
            assert pid is not None
            await generator.close()
            assert not is_alive(pid)
            with pytest.raises(Unavailable, match="stopping"):
                async for _ in stream:
                    pass
            with pytest.raises(Unavailable, match="stopping"):
                await generator.machine_speed(Target(base), 1)

    run(test)


def test_a_worker_dies_with_the_process_that_started_it(tmp_path: Path) -> None:
    program = textwrap.dedent(
        """
        import asyncio, sys
        from pathlib import Path
        from sarto.serving.worker.client import WorkerGenerator

        async def main():
            generator = WorkerGenerator(Path(sys.argv[1]), threads=1)
            await generator._query(None, "metrics", {})
            print(generator.pid, flush=True)
            await asyncio.sleep(60)

        asyncio.run(main())
        """
    )
    with subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert is_alive(pid)
        parent.kill()
    run(lambda: until_dead(pid))


def test_the_doorway_loads_no_torch() -> None:
    check = "import sarto.serving.worker.client, sys; assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    subprocess.run([sys.executable, "-c", check], check=True)


def test_questions_about_the_machine_hold_no_answer_up(tmp_path: Path, base: BaseWeights) -> None:
    """They stood in the queue of requests, and measuring took seconds: forty of one caller held all answers up for
    minutes."""

    async def test() -> None:
        async with worker(tmp_path) as generator:
            await collect(generator.generate(Target(base), request(maxOutputTokens=1)))
            asked = [asyncio.ensure_future(generator.machine_speed(Target(base), 1)) for _ in range(40)]
            began = asyncio.get_running_loop().time()
            await collect(generator.generate(Target(base), request(maxOutputTokens=1)))
            assert asyncio.get_running_loop().time() - began < 10
            measured = [found["flops_per_second"] for found in await asyncio.gather(*asked)]
            assert len(set(measured)) == 1, "it is measured once"

    run(test)


def test_requests_with_schemas_take_turns_and_make_room_however_they_end(tmp_path: Path, base: BaseWeights) -> None:
    def with_schema(number: int, most: int) -> GenerateContentRequest:
        schema = {"type": "object", "properties": {f"p{number}": {"type": "string"}}, "required": [f"p{number}"]}
        return request(responseMimeType="application/json", responseSchema=schema, maxOutputTokens=most)

    async def test() -> None:
        alpha, beta = Target(base, tenant="alpha"), Target(base, tenant="beta")
        async with worker(tmp_path) as generator:
            many = [
                asyncio.ensure_future(collect(generator.generate(alpha, with_schema(number, 1900))))
                for number in range(2 * MOST_GRAMMARS)
            ]
            await collect(generator.generate(beta, with_schema(0, 1)))
            for one in many:
                one.cancel()
            await asyncio.gather(*many, return_exceptions=True)
            again = [collect(generator.generate(alpha, with_schema(number, 1))) for number in range(2 * MOST_GRAMMARS)]
            assert len(await asyncio.gather(*again)) == 2 * MOST_GRAMMARS

    run(test)
