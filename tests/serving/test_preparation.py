"""Requests that would take the machine, beside requests of others: real processes, real limits.

The bound on the others' time, p95 below a second, is the promise of docs/security.md; alone they take milliseconds.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from sarto.contract.common import BaseWeights
from sarto.errors import InvalidArgument, ResourceExhausted
from sarto.schema.generation import CountTokensRequest
from sarto.serving.generator import Target, collect
from sarto.serving.preparation.pool import SCORES, PreparationPool, PreparingLimits, ProjectSlots
from sarto.serving.worker.client import WorkerGenerator
from tests.serving.making import FILES, request
from tests.tiny import make_tiny_base

P95_SECONDS = 1.0
PAIRS = [left + right for left in "abcde" for right in "abcde"]
SCHEMA_BOMB = {"allOf": [{"type": "string", "pattern": f".*{pair}.*"} for pair in PAIRS[:19]]}
TURNS = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WORK = "{% for a in text %}{% for b in text %}{% for c in text %}{% endfor %}{% endfor %}{% endfor %}"
GROWTH = (
    "{% set held = namespace(text=text) %}{% for a in range(40) %}{% set held.text = [held.text, held.text]|join %}"
)
BOMBS = {
    "loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "loops over the text": WORK,
    "a text multiplied": "{% set x = text * 1000000 %}",
    "a text doubled": GROWTH + "{% endfor %}",
    "a wide format": "{{ '%3000000000d' % 1 }}",
}
Rows = dict[str, Any]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> BaseWeights:
    return make_tiny_base(tmp_path_factory.mktemp("base") / "llama")


def own_base(base: BaseWeights, folder: Path, template: str) -> BaseWeights:
    """A user's own, with a template of theirs."""
    shutil.copytree(base.folder, folder)
    (folder / "chat_template.jinja").write_text(template)
    return BaseWeights(name=folder.name, folder=str(folder), digest=f"custom-{folder.name}")


def hostile(base: BaseWeights, folder: Path, bomb: str) -> BaseWeights:
    inside = "{% for message in messages %}{% set text = message['content'] %}{% if 'TRIGGER' in text %}"
    return own_base(base, folder, f"{inside}{bomb}{{% endif %}}{{% endfor %}}{TURNS}")


def asked(text: str) -> CountTokensRequest:
    return CountTokensRequest.read({"contents": [{"role": "user", "parts": [{"text": text}]}]})


@asynccontextmanager
async def service(folder: Path, **limits: Any) -> AsyncIterator[WorkerGenerator]:
    generator = WorkerGenerator(
        folder, threads=1, dtype="float32", limits=PreparingLimits(**limits), question_files=FILES
    )
    try:
        yield generator
    finally:
        await generator.close()


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(120):
            await test()

    asyncio.run(limited())


async def p95(call: Callable[[], Awaitable[Any]], times: int = 20) -> float:
    found = []
    for _ in range(times):
        began = time.monotonic()
        await call()
        found.append(time.monotonic() - began)
    return sorted(found)[int(0.95 * times) - 1]


async def refusals(call: Callable[[], Awaitable[Any]], found: list[str]) -> None:
    """Asks again and again; notes what it is told."""
    while True:
        try:
            await call()
            found.append("")
        except InvalidArgument as error:
            found.append(str(error))


async def beside(attack: Callable[[], Awaitable[Any]], victim: Callable[[], Awaitable[Any]]) -> tuple[float, list[str]]:
    """The victim's p95 while four attackers work, and what they were told."""
    await victim()
    told: list[str] = []
    attackers = [asyncio.create_task(refusals(attack, told)) for _ in range(4)]
    try:
        found = await p95(victim)
        while not told:
            await asyncio.sleep(0.05)
    finally:
        for attacker in attackers:
            attacker.cancel()
        await asyncio.gather(*attackers, return_exceptions=True)
    return found, told


def test_a_schema_that_doubles_with_each_pattern_delays_nobody(tmp_path: Path, base: BaseWeights) -> None:
    bomb = request(responseMimeType="application/json", responseJsonSchema=SCHEMA_BOMB)

    async def test() -> None:
        async with service(tmp_path) as generator:
            seconds, told = await beside(
                lambda: collect(generator.generate(Target(base, tenant="attacker"), bomb)),
                lambda: collect(generator.generate(Target(base, tenant="victim"), request(maxOutputTokens=1))),
            )
            assert seconds < P95_SECONDS
            assert all("and was stopped" in words or "cannot be enforced" in words for words in told), told

    run(test)


def test_a_very_long_text_delays_nobody(tmp_path: Path, base: BaseWeights) -> None:
    long = "words and more " * 1_400_000

    async def test() -> None:
        async with service(tmp_path) as generator:
            seconds, told = await beside(
                lambda: generator.count_tokens(Target(base, tenant="attacker"), asked(long)),
                lambda: generator.count_tokens(Target(base, tenant="victim"), asked("Hello")),
            )
            assert seconds < P95_SECONDS
            assert all("and was stopped" in words for words in told), told
            with pytest.raises(InvalidArgument, match="characters, which are more than"):
                await collect(generator.generate(Target(base), request(long)))

    run(test)


@pytest.mark.parametrize("kind", BOMBS)
def test_a_hostile_template_is_refused_by_name_and_delays_nobody(tmp_path: Path, base: BaseWeights, kind: str) -> None:
    owned = hostile(base, tmp_path / "owned", BOMBS[kind])
    text = "TRIGGER" + "x" * 3000

    async def test() -> None:
        async with service(tmp_path, prompt_bytes=128 << 20) as generator:
            assert (await generator.count_tokens(Target(owned), asked("Hello"))).total_tokens
            seconds, told = await beside(
                lambda: generator.count_tokens(Target(owned, tenant="attacker"), asked(text)),
                lambda: generator.count_tokens(Target(base, tenant="victim"), asked("Hello")),
            )
            assert seconds < P95_SECONDS
            assert all("and was stopped" in words or "the chat template refuses" in words for words in told), told

    run(test)


def test_a_constant_of_a_template_is_not_made_when_it_is_compiled(tmp_path: Path, base: BaseWeights) -> None:
    owned = own_base(base, tmp_path / "owned", "{% if false %}{{ 'a' * 3000000000 }}{% endif %}" + TURNS)

    async def test() -> None:
        async with service(tmp_path) as generator:
            assert (await generator.count_tokens(Target(owned), asked("Hello"))).total_tokens

    run(test)


def test_a_killed_process_is_replaced(tmp_path: Path, base: BaseWeights) -> None:
    async def test() -> None:
        async with service(tmp_path) as generator:
            first = await generator.count_tokens(Target(base), asked("Hello"))
            (pid,) = generator.preparation.pids
            os.kill(pid, signal.SIGKILL)
            while pid in generator.preparation.pids:
                await asyncio.sleep(0.01)
            assert await generator.count_tokens(Target(base), asked("Hello")) == first
            assert generator.preparation.pids not in ([], [pid])

    run(test)


def test_work_ends_with_whoever_asked_for_it(tmp_path: Path, base: BaseWeights) -> None:
    lines = "".join(f"{number} a\n" for number in range(1900))
    texts = {"prediction": lines, "reference": "".join(f"b {line}\n" for line in lines.splitlines())}
    rouge = {"metricSpec": {"rougeType": "rougeLsum"}, "instances": [texts]}
    payload = {"request": {"rougeInput": rouge}, "metric": 0}

    async def test() -> None:
        preparation = PreparationPool(tmp_path / "log", PreparingLimits(), files=FILES)
        try:
            work = [asyncio.create_task(preparation.ask(None, f"p{n}", SCORES, payload)) for n in range(4)]
            while len(preparation.pids) < 2:
                await asyncio.sleep(0.01)
            for task in work:
                task.cancel()
            while preparation.pids:
                await asyncio.sleep(0.01)
        finally:
            await preparation.close()

    run(test)


def test_more_lines_than_can_be_compared_are_refused() -> None:
    from sarto.engine.evaluation.metrics.rouge import rouge

    ours, theirs = ("".join(f"{side}{number}\n" for number in range(2001)) for side in "ab")
    with pytest.raises(InvalidArgument, match="compares all lines"):
        rouge(ours, theirs, "rougeLsum")


def test_a_project_has_half_of_the_seats_and_projects_take_turns() -> None:
    async def test() -> None:
        seats, entered = ProjectSlots(4, 8), list[str]()

        async def work(project: str) -> None:
            await seats.enter(project)
            entered.append(project)

        many = [asyncio.create_task(work("a")) for _ in range(8)]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert entered == ["a", "a"]
        with pytest.raises(ResourceExhausted):
            for _ in range(3):
                many.append(asyncio.create_task(work("a")))
                await asyncio.sleep(0)
            await work("a")
        await work("b")
        await work("c")
        late = asyncio.create_task(work("d"))
        await asyncio.sleep(0)
        seats.leave("b")
        await late
        assert entered == ["a", "a", "b", "c", "d"]
        for task in many:
            task.cancel()
        await asyncio.gather(*many, return_exceptions=True)

    run(test)
