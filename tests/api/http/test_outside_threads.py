"""Threads that projects share: one that fills its share does not keep another from its own."""

from __future__ import annotations

import asyncio
import threading

import pytest

from sarto.api.http.handler_threads import HandlerThreads, OutsideThreads


def test_a_project_has_its_share_also_when_its_callers_have_gone() -> None:
    async def test() -> None:
        outside, go = OutsideThreads(8, 2), threading.Event()
        try:
            slow = [asyncio.create_task(outside.call("alpha", go.wait)) for _ in range(20)]
            assert await asyncio.wait_for(outside.call("beta", lambda: 1), 10) == 1
            for task in slow[:10]:
                task.cancel()
            late = asyncio.create_task(outside.call("alpha", lambda: 2))
            assert await outside.call("beta", lambda: 3) == 3
            assert not late.done()
            go.set()
            assert await asyncio.wait_for(late, 10) == 2
            with pytest.raises(asyncio.CancelledError):
                await slow[0]
            assert all(await asyncio.gather(*slow[10:]))
        finally:
            go.set()
            outside.close()

    asyncio.run(test())


def test_a_project_whose_bodies_take_long_to_read_does_not_keep_anothers_from_being_read() -> None:
    async def test() -> None:
        threads, go = HandlerThreads(1, None), threading.Event()
        try:
            slow = [asyncio.create_task(threads.compute("alpha", go.wait)) for _ in range(20)]
            assert await asyncio.wait_for(threads.compute("beta", lambda: 1), 10) == 1
            slow[0].cancel()  # its thread goes on, and counts
            assert await asyncio.wait_for(threads.compute("beta", lambda: 2), 10) == 2
            assert not any(task.done() for task in slow[1:])
            go.set()
            assert all(await asyncio.wait_for(asyncio.gather(*slow[1:]), 10))
        finally:
            go.set()
            threads.close()

    asyncio.run(test())
