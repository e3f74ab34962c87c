from __future__ import annotations

import json
import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sarto.api.gcs.multipart_body import MAX_HEAD_BYTES, MultipartReader, boundary
from sarto.errors import InvalidArgument

TYPE = "multipart/related; boundary=mark"


def body(resource: object, data: bytes, end: bytes = b"\r\n") -> bytes:
    head = [b"--mark", b"Content-Type: application/json", b"", json.dumps(resource).encode(), b"--mark"]
    return end.join([*head, b"content-type: text/csv", b"", data]) + end + b"--mark--"


def read(pieces: list[bytes]) -> tuple[object, str, bytes]:
    related = MultipartReader(TYPE)
    data = b"".join(related.feed(piece) for piece in pieces)
    related.close()
    return related.resource, related.content_type, data


@given(
    data=st.one_of(
        st.binary(max_size=60), st.lists(st.sampled_from([b"\r", b"\n", b"-", b"--mar", b"mark", b"x"])).map(b"".join)
    ),
    cuts=st.lists(st.integers(0, 200), max_size=6),
    end=st.sampled_from([b"\r\n", b"\n"]),
)
def test_the_bytes_come_out_wherever_the_blocks_are_cut(data: bytes, cuts: list[int], end: bytes) -> None:
    if end + b"--mark" in end + data + end:
        return  # no sender may choose such a boundary
    whole = body({"name": "é"}, data, end)
    edges = sorted({0, len(whole), *(min(cut, len(whole)) for cut in cuts)})
    pieces = [whole[a:b] for a, b in pairwise(edges)]
    assert read(pieces) == ({"name": "é"}, "text/csv", data)
    assert read([whole[n : n + 1] for n in range(len(whole))]) == ({"name": "é"}, "text/csv", data)


def test_a_hundred_thousand_broken_bodies_are_refused_or_read_and_never_held() -> None:
    chance = random.Random(7)
    seeds = [
        body({"name": "a", "metadata": {"k": "v"}}, b"some data\r\n-- more\n" * 2, end) for end in (b"\r\n", b"\n")
    ]
    alphabet = [
        b"--",
        b"\r\n",
        b"\n",
        b"mark",
        b"--mark--",
        b"--mark\r\n",
        b"\0",
        b"\xff",
        b"{",
        b'"',
        b"Content-Type:",
    ]
    refused = 0
    for number in range(100_000):
        text = bytearray(seeds[number % 2])
        for _ in range(chance.randrange(1, 4)):
            at = chance.randrange(len(text) + 1)
            text[at : at + chance.choice((0, 1, 5, 30))] = chance.choice(alphabet)
        cut = chance.randrange(len(text) + 1)
        related = MultipartReader(TYPE)
        try:
            given = related.feed(bytes(text[:cut])) + related.feed(bytes(text[cut:]))
            related.close()
            assert len(given) <= len(text)
        except InvalidArgument:
            refused += 1
    assert 0 < refused < 100_000


def test_what_is_held_stays_small() -> None:
    related = MultipartReader(TYPE)
    related.feed(body({"name": "a"}, b"")[: -len(b"\r\n--mark--")])
    given = 0
    for _ in range(8):
        given += len(related.feed(b"\r\n--mar" * 150_000))
        assert len(related._held) < 16
    assert given > 8_000_000
    with pytest.raises(InvalidArgument, match="closing boundary"):
        related.close()
    endless = MultipartReader(TYPE)
    with pytest.raises(InvalidArgument, match=f"larger than {MAX_HEAD_BYTES}"):
        for _ in range(20):
            endless.feed(b"--mark\r\n" + b"x" * 100_000)


@pytest.mark.parametrize(
    ("written", "found"),
    [
        ("multipart/related; boundary=abc", "abc"),
        ('Multipart/Related; type="a/b"; Boundary="a b"', "a b"),
        ("multipart/related; boundary='===1=='", "'===1=='"),
    ],
)
def test_boundaries(written: str, found: str) -> None:
    assert boundary(written) == found


@pytest.mark.parametrize("written", ["", "multipart/related", "text/plain; boundary=a", "multipart/related; boundary="])
def test_no_boundary(written: str) -> None:
    with pytest.raises(InvalidArgument, match="boundary"):
        boundary(written)
