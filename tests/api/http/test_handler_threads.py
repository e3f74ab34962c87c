"""Calls share a thread while it keeps up; a long one holds nobody up."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from sarto.api.http.handler_threads import HandlerThreads
from sarto.storage.database.database import Database
from sarto.storage.database.tables import meta, metadata


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    made = Database(f"sqlite:///{tmp_path / 'sarto.db'}")
    metadata.create_all(made.engine)
    yield made
    made.close()


@pytest.mark.parametrize("kind", ["read", "write"])
def test_calls_behind_a_long_one_go_elsewhere(database: Database, kind: str) -> None:
    threads = HandlerThreads(4, database.writer)
    released = threading.Event()

    async def ask() -> list[int]:
        submit = getattr(threads, kind)
        long = asyncio.wrap_future(submit(lambda: released.wait(30)))
        short = [asyncio.wrap_future(submit(lambda n=n: n)) for n in range(20)]
        answers = await asyncio.wait_for(asyncio.gather(*short), 10)  # all submitted at once, none behind the long one
        released.set()
        assert await long
        return list(answers)

    try:
        assert asyncio.run(ask()) == list(range(20))
    finally:
        released.set()
        threads.close()


def test_a_thousand_writes_at_once_are_all_there_when_answered(database: Database) -> None:
    threads = HandlerThreads(4, database.writer)

    def put(key: int) -> int:
        with database.transaction(only_answers=True) as connection:
            connection.execute(meta.insert().values(key=str(key), value="1"))
            if key % 10 == 0:
                raise ValueError(key)
        return key

    async def ask() -> list[int | BaseException]:
        asked = [asyncio.wrap_future(threads.write(lambda n=n: put(n))) for n in range(1000)]
        return list(await asyncio.wait_for(asyncio.gather(*asked, return_exceptions=True), 30))

    try:
        answers = asyncio.run(ask())
        assert [isinstance(answer, ValueError) for answer in answers] == [n % 10 == 0 for n in range(1000)]
        with database.reading() as connection:
            assert len(connection.execute(meta.select()).all()) == 900
    finally:
        threads.close()
