"""The form of an upload: any order of fields, any cut into blocks, and every fault by name."""

from __future__ import annotations

import random

import pytest

from sarto.api.openai.form_data import MOST_FIELD_BYTES, MOST_PARTS, FormReader
from sarto.errors import InvalidArgument

TYPE = "multipart/form-data; boundary=abc"
FILE = b'Content-Disposition: form-data; name="file"; filename="a b.jsonl"\r\nContent-Type: application/octet-stream'


def field(name: str) -> bytes:
    return f'Content-Disposition: form-data; name="{name}"'.encode()


def form(*parts: tuple[bytes, bytes], boundary: bytes = b"abc") -> bytes:
    each = (b"--" + boundary + b"\r\n" + head + b"\r\n\r\n" + data + b"\r\n" for head, data in parts)
    return b"".join(each) + b"--" + boundary + b"--\r\n"


def read(body: bytes, size: int = 1 << 20, content_type: str = TYPE) -> tuple[bytes, FormReader]:
    reader = FormReader(content_type, "file")
    data = b"".join(reader.feed(body[at : at + size]) for at in range(0, len(body), size))
    reader.close()
    return data, reader


@pytest.mark.parametrize("size", [1, 2, 3, 7, 50, 10_000])
@pytest.mark.parametrize("data", [b"", b"x", b"\r\n", b"\r\n--ab", b"--abc", b"\r\n--ab\r\n--abd\r\n", b"\0" * 5000])
def test_any_cut_and_any_order_give_the_same(size: int, data: bytes) -> None:
    purpose = (field("purpose"), b"fine-tune")
    for parts in ((purpose, (FILE, data)), ((FILE, data), purpose)):
        found, reader = read(form(*parts), size)
        assert (found, reader.fields, reader.file_name) == (data, {"purpose": "fine-tune"}, "a b.jsonl")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "before its closing boundary"),
        (b"--xyz\r\n", "does not begin with the boundary"),
        (form((FILE, b"x"))[:-6], "before its closing boundary"),
        (form((field("purpose"), b"a")), "no such file"),
        (form((FILE, b"x"), (FILE, b"y")), "twice"),
        (form((b"Content-Type: text/plain", b"x")), "no name"),
        (form((field("purpose"), b"a" * (MOST_FIELD_BYTES + 1))), "at most"),
        (form(*((field(f"f{number}"), b"") for number in range(MOST_PARTS + 1))), "more than"),
        (b"--abc\r\n" + b"a: b\r\n" * 5000, "headers of a part"),
    ],
)
def test_faults(body: bytes, words: str) -> None:
    for size in (1 << 20, 100):
        with pytest.raises(InvalidArgument, match=words):
            read(body, size)


def test_a_body_that_is_no_form_is_refused() -> None:
    for content_type in ("", "application/json", "multipart/form-data", "multipart/mixed; boundary=abc"):
        with pytest.raises(InvalidArgument, match="multipart/form-data"):
            FormReader(content_type, "file")


def test_a_hundred_thousand_damaged_forms_are_read_or_refused() -> None:
    chance = random.Random(7)
    whole = form((field("purpose"), b"fine-tune"), (FILE, b"one\r\n--ab two"))
    for _ in range(100_000):
        body = bytearray(whole)
        for _ in range(chance.randrange(1, 4)):
            at = chance.randrange(len(body))
            if chance.random() < 0.5:
                body[at] = chance.randrange(256)
            else:
                del body[at : at + chance.randrange(1, 9)]
        reader = FormReader(TYPE, "file")
        cut = chance.randrange(len(body))
        try:
            data = reader.feed(bytes(body[:cut])) + reader.feed(bytes(body[cut:]))
            reader.close()
        except InvalidArgument:
            continue
        assert len(data) <= len(whole)
