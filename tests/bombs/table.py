"""The bombs: what a caller could send to stop the service for others. To add one is to add an entry.

`BODIES` are thrown at every route that takes a body, `FILTERS` at every list, `ACTS` are whatever takes more than one
request. All are thrown by every caller of `site.CALLERS`. An act gives the statuses it got.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from tests.bombs import grpc_door, own_base, work
from tests.bombs.site import CALLERS, Site

JSON = "application/json"


@dataclass(frozen=True)
class Body:
    """`make` gives it at each of two sizes: 0 is some KiB, 1 as large as it gets."""

    name: str
    make: Callable[[int], bytes]
    content_type: str = JSON


@dataclass(frozen=True)
class Act:
    name: str
    throw: Callable[[Site], Awaitable[list[int]]]


def many(piece: str, counts: tuple[int, int], before: str = "", after: str = "") -> Callable[[int], bytes]:
    return lambda size: (before + piece * counts[size] + after).encode()


def numbered(counts: tuple[int, int]) -> Callable[[int], bytes]:
    return lambda size: json.dumps({f"x{i}": 1 for i in range(counts[size])}).encode()


CONTENTS = '{"contents":['
FILE_HEAD = '--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
BODIES = (
    Body("empty arrays in a form field", many("[],", (20_000, 10_000_000), '{"grant_type":[', "[]]}")),
    Body("nested arrays", many("[", (1000, 1_000_000), '{"contents":', "")),
    Body("nested objects, closed", lambda size: b'{"a":' * (900, 500_000)[size] + b"1" + b"}" * (900, 500_000)[size]),
    Body("unknown names", numbered((5_000, 300_000))),
    Body("numbers for contents", many("1,", (30_000, 300_000), CONTENTS, "1]}")),
    Body("contents with bad parts", many('{"parts":1},', (4_000, 200_000), CONTENTS, "{}]}")),
    Body("small contents", many('{"role":"user","parts":[{"text":"a"}]},', (1_000, 19_000), CONTENTS, "{}]}")),
    Body("one long name", many("x", (60_000, 900_000), '{"', '":1}')),
    Body("quotes", many('"",', (20_000, 8_000_000), "[", '""]')),
    Body("backslashes", many("\\\\", (30_000, 8_000_000), '{"a":"', '"}')),
    Body("a number of many digits", many("9", (5_000, 1_000_000), '{"minItems":', "}")),
    Body("not JSON", many("\x00\x7f", (4_000, 400_000))),
    Body("a form of many fields", many("a=b&", (10_000, 200_000)), "application/x-www-form-urlencoded"),
    Body(
        "nested multiparts",
        many("--b\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n", (1_000, 15_000)),
        "multipart/mixed; boundary=b",
    ),
    Body("header lines in a multipart", many("a: b\r\n", (10_000, 160_000), "--b\r\n"), "multipart/mixed; boundary=b"),
    Body("parts of a multipart", many("--b\r\n\r\nGET /\r\n", (4_000, 70_000)), "multipart/mixed; boundary=b"),
    Body(
        "fields of a form",
        many('--b\r\nContent-Disposition: form-data; name="a"\r\n\r\n1\r\n', (1_000, 15_000)),
        "multipart/form-data; boundary=b",
    ),
    Body("a file without end", many("x", (60_000, 900_000), FILE_HEAD), "multipart/form-data; boundary=b"),
    Body("XML elements", many("<Part>", (9_000, 300_000), "<a>"), "application/xml"),
)
FILTERS = (
    'displayName="' + "a*" * 60 + 'b"',
    "state=a " * 500,
    "(" * 2000,
    "NOT " * 900 + "a=b",
    '"' + "\\" * 3000,
    "createTime>" + "9" * 3000,
    "labels." + "a" * 3000 + ":*",
)


async def long_heads(site: Site) -> list[int]:
    """Heads without end: a header, headers, and a URL."""
    pieces = (b"x" * 65_536, b"a: b\r\n" * 10_000, b"a" * 65_536)
    starts = (b"GET /healthz HTTP/1.1\r\nx: ", b"GET /healthz HTTP/1.1\r\n", b"GET /")
    answers = await asyncio.gather(*(site.pour(s, p, 200) for s, p in zip(starts, pieces, strict=True)))
    return [status for status in answers if status]


async def half_requests(site: Site) -> list[int]:
    """Connections that say nothing, half a head, or half a body; they stay until the end."""
    for start in (
        b"",
        b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n",
        b"POST /token HTTP/1.1\r\nContent-Length: 5000\r\n\r\n{",
    ):
        for _ in range(25):
            await site.hold(start)
    return []


async def unread_answers(site: Site) -> list[int]:
    """Clients that ask for a large page over and over and read none of it."""
    for _ in range(10):
        await site.hold(b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n" * 200)
    return []


async def parked_waits(site: Site) -> list[int]:
    """200 waits and 200 streams of events, of one caller each; what is too many is refused by name."""
    waits = [site.park("user", "POST", f"{site.operation}:wait", b'{"timeout":"120s"}') for _ in range(100)]
    waits += [site.park("user", "POST", f"{site.job}:wait", b'{"timeout":"120s"}') for _ in range(100)]
    streams = [site.park("viewer", "GET", f"{site.job}/events", b"", "text/event-stream") for _ in range(120)]
    refused = [status for status in await asyncio.gather(*waits, *streams) if status]
    assert refused and set(refused) == {429}, refused
    return refused


async def bad_tokens(site: Site) -> list[int]:
    """Bearers whose parts are deep JSON, large, or not JSON."""
    deep = base64.urlsafe_b64encode(b"[" * 5000).decode().rstrip("=")
    tokens = (f"{deep}.{deep}.a", "a" * 60_000, "a.b.c", "." * 5000, f"{deep[:4000]}..")
    path = "/v1/projects/alpha/locations/us-central1/endpoints"
    found = [await site.ask(None, "GET", path, bearer=token) for token in tokens]
    for token in tokens:
        form = json.dumps({"grant_type": "urn:ietf:params:oauth:grant-type:jwt-bearer", "assertion": token}).encode()
        found.append(await site.ask(None, "POST", "/token", form))
    return found


async def long_bodies_together(site: Site) -> list[int]:
    """Thirty-two prompts of 30 MB at once, by one caller: it may hold four such bodies."""
    body = b'{"contents":[{"parts":[{"text":"' + b"a, b " * 6_000_000 + b'"}]}]}'
    path = "/v1/projects/alpha/locations/us-central1/endpoints/7:generateContent"
    return await asyncio.gather(*(site.ask("user", "POST", path, body) for _ in range(32)))


async def schemas(site: Site) -> list[int]:
    """Schemas with counts of many digits and deep nesting."""
    deep = '{"items":' * 95 + "{}" + "}" * 95
    found = []
    for schema in ('{"type":"ARRAY","minItems":"' + "9" * 5000 + '"}', '{"minItems":' + "9" * 4000 + "}", deep):
        body = '{"contents":[{"parts":[{"text":"a"}]}],"generationConfig":{"responseMimeType":"application/json",'
        body += f'"responseSchema":{schema}}}}}'
        path = "/v1/projects/alpha/locations/us-central1/publishers/google/models/gemini-2.0-flash-001:generateContent"
        found.append(await site.ask("user", "POST", path, body.encode()))
    return found


async def queries(site: Site) -> list[int]:
    """Queries of many parameters, and page tokens and masks that are none."""
    found = []
    for query in ("a=b&" * 10_000, "pageToken=" + "A" * 30_000, "pageSize=" + "9" * 5000, "filter=" + "%28" * 15_000):
        for caller in CALLERS:
            path = f"/v1/projects/alpha/locations/us-central1/tuningJobs?{query}"
            found.append(await site.ask(caller, "GET", path))
    return found


async def refusals(site: Site) -> list[int]:
    """Names as long as they get, over and over, of whoever is refused; each is an entry of the audit log at most."""
    path = f"/v1/projects/alpha/serviceAccounts/{'x' * 60_000}"
    asked = [site.ask(caller, "GET", path) for caller in (None, "nobody", "owner elsewhere") for _ in range(100)]
    return list(await asyncio.gather(*asked))


ACTS = (
    Act("heads without end", long_heads),
    Act("half requests that stay", half_requests),
    Act("answers that nobody reads", unread_answers),
    Act("parked waits and streams", parked_waits),
    Act("tokens that are none", bad_tokens),
    Act("long prompts together", long_bodies_together),
    Act("schemas", schemas),
    Act("queries", queries),
    Act("schemas of many patterns", work.patterns),
    Act("texts of 21 million characters", work.long_texts),
    Act("texts of many lines to compare", work.rouge),
    Act("long metrics", work.metrics),
    Act("a judge that drips", work.slow_judges),
    Act("rewards without end", work.rewards),
    Act("hundreds of requests", work.many_requests),
    Act("templates and a tokenizer of one's own", own_base.templates),
    Act("exports", own_base.exports),
    Act("calls at the gRPC door", grpc_door.calls),
    Act("hostile datasets", work.checks),
    Act("batch predictions", work.batches),
    Act("upload sessions", work.upload_sessions),
    Act("refusals of long names", refusals),
)
