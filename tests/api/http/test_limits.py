"""Callers that ask for too much are told the limit, and when to come back."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from sarto.api.http.limits import MOST_CALLERS, MOST_HEADERS, RateLimit, check_head
from sarto.errors import HeadersTooLarge, ResourceExhausted
from tests.api.doors import house


def test_too_many_and_too_large_headers_are_refused() -> None:
    check_head([(b"a", b"b")] * MOST_HEADERS)
    for headers in ([(b"a", b"b")] * (MOST_HEADERS + 1), [(b"a", b"b" * 70_000)]):
        with pytest.raises(HeadersTooLarge) as refused:
            check_head(headers)
        assert refused.value.http_status == 431


def test_each_caller_has_a_rate_of_its_own_and_hears_when_to_come_back() -> None:
    rate = RateLimit(0.5)
    rate.take("ada")
    with pytest.raises(ResourceExhausted) as refused:
        rate.take("ada")
    assert refused.value.http_status == 429
    assert 0 < float(refused.value.details[0]["retryDelay"].removesuffix("s")) <= 2
    rate.take("eve")


def test_no_rate_is_no_limit_and_callers_are_forgotten() -> None:
    free = RateLimit(0)
    for _ in range(1000):
        free.take("ada")
    rate = RateLimit(1)
    for number in range(MOST_CALLERS + 10):
        rate.take(str(number))
    assert len(rate._buckets) == MOST_CALLERS


@pytest.mark.parametrize(("settings", "status"), [({"max_upload_bytes": 1000}, 413), ({"reserve_bytes": 1 << 60}, 429)])
def test_uploads_are_bounded_and_leave_the_disk_its_reserve(
    tmp_path: Path, settings: dict[str, int], status: int
) -> None:
    asyncio.run(_uploads(tmp_path, settings, status))


async def _uploads(home: Path, settings: dict[str, int], status: int) -> None:
    async with house(home, **settings) as place:
        place.account("owner-account", "roles/owner")
        await place.ask("owner-account", "POST", "/storage/v1/b?project=demo", {"name": "a-bucket"})
        begun = await place.ask(
            "owner-account", "POST", "/upload/storage/v1/b/a-bucket/o?uploadType=resumable&name=r", {}
        )
        session = begun.headers["location"].removeprefix("http://127.0.0.1")
        for method, path, headers in (
            ("POST", "/upload/storage/v1/b/a-bucket/o?uploadType=media&name=m", {}),
            ("PUT", "/a-bucket/x", {}),
            ("PUT", session, {"Content-Range": "bytes 0-1023/*"}),
        ):
            answer = await place.client.request(
                method,
                path,
                content=b"x" * 1024,
                headers={"Authorization": f"Bearer {place.tokens['owner-account']}", **headers},
            )
            assert answer.status_code == status, (method, path, answer.text)
        assert place.services.buckets.list("a-bucket").objects == ()
