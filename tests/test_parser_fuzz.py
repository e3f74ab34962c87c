"""Broken files and bodies end in an error of ours, never in a crash, and in bounded memory.

A few thousand mutations of good inputs for each parser; `SARTO_FUZZ_INPUTS=100000` makes it the published run.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import random
import resource
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import ipc, parquet
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from sarto.api.gcs.multipart_body import MultipartReader
from sarto.conversations.convert.conversion import convert, refuse_unusable
from sarto.conversations.convert.files import find_files
from sarto.conversations.convert.guess import guess, read_sample
from sarto.conversations.convert.mapping import parse_mapping
from sarto.conversations.examples import RowFault, parse_line
from sarto.engine.weights.gguf_reader import open_gguf
from sarto.errors import InvalidArgument, SartoError
from tests.api.gcs.test_multipart_body import TYPE, body
from tests.engine.weights.test_gguf_reader import build, text

INPUTS = int(os.environ.get("SARTO_FUZZ_INPUTS", "2000"))
MOST_GROWTH_BYTES = 300 << 20
KEPT_BYTES = {"zstd": 8 << 10}
"""Bytes that a library keeps of each broken input: pyarrow 26.0.1 loses 4 to 5 KiB with every broken zstd stream."""
NUMBERS = (0, 1, 2, 7, 127, 255, 256, 65535, 2**31 - 1, 2**31, 2**32 - 1, 2**53, 2**63 - 1, 2**63, 2**64 - 1)
WORDS = (b"\0", b"\xff\xfe", b"{", b"}", b'"', b"[" * 50, b"--mark", b"\r\n\r\n", b"null", b"1e999", b"\\ud800", b"F32")


def mutated(good: bytes, random_: random.Random) -> bytes:
    """A few edits: bytes flipped, numbers put in, pieces cut, doubled, moved, or ended early."""
    data = bytearray(good)
    for _ in range(random_.randint(1, 4)):
        at = random_.randrange(len(data) + 1)
        match random_.randrange(6):
            case 0:
                data[at : at + 1] = bytes([random_.randrange(256)])
            case 1:
                size = random_.choice((2, 4, 8))
                data[at : at + size] = (random_.choice(NUMBERS) % 256**size).to_bytes(size, "little")
            case 2:
                del data[at:]
            case 3:
                del data[at : at + random_.randrange(1, 40)]
            case 4:
                data[at:at] = data[at : at + random_.randrange(1, 40)]
            case _:
                data[at:at] = random_.choice(WORDS)
    return bytes(data)


def read_gguf(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    with open_gguf(path) as file:
        for name in list(file.tensors)[:4]:
            file.tensor(name)


def read_safetensors(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    with safe_open(path, "np") as file:
        for name in list(file.keys())[:4]:
            file.get_tensor(name)


def read_multipart(_: Path, data: bytes) -> None:
    related = MultipartReader(TYPE)
    for at in range(0, len(data), 17):
        related.feed(data[at : at + 17])
    related.close()


def read_row(_: Path, data: bytes) -> None:
    parse_line(data, 1, data_format="auto")


def gguf() -> bytes:
    pairs = text("general.alignment") + struct.pack("<II", 4, 32)
    pairs += text("names") + struct.pack("<IIQ", 9, 8, 2) + text("one") + text("two")
    return build({"a": ((2, 32), 0, b"\1" * 256), "b": ((1, 32), 8, b"\2" * 34)}, pairs, 2)


def safetensors() -> bytes:
    import numpy as np

    return save({"a": np.ones((4, 8), np.float32), "b": np.ones(6, np.int64)}, {"format": "pt"})


def row() -> bytes:
    parts = [{"text": "question"}, {"functionCall": {"name": "f", "args": {"x": [1, 2.5, None]}}}]
    turns = [{"role": "user", "parts": parts[:1]}, {"role": "model", "parts": parts}]
    return json.dumps({"systemInstruction": {"parts": parts[:1]}, "contents": turns}).encode()


PAIRS = [{"input": f"question {n}", "output": "answer, and more" * n} for n in range(1, 5)]


def converting(name: str) -> Callable[[Path, bytes], None]:
    """The whole conversion of a file with this name, from its bytes to lines."""

    def read(path: Path, data: bytes) -> None:
        source = path.with_name(name)
        source.write_bytes(data)
        files = find_files([str(source)])
        mapping = guess(read_sample(files, "utf-8")).mapping
        refuse_unusable(convert(files, mapping, io.BytesIO()), mapping)

    return read


def pairs_csv() -> bytes:
    rows = "".join(f'"{row["input"]}";"{row["output"]}"\r\n' for row in PAIRS)
    return f"input;output\r\n{rows}".encode()


def pairs_json() -> bytes:
    return json.dumps(PAIRS, indent=1).encode()


def pairs_lines() -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in PAIRS)


def pairs_parquet() -> bytes:
    written = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(PAIRS), written, compression="zstd")
    return written.getvalue()


def pairs_arrow(make: Callable[..., Any], **options: Any) -> bytes:
    written, table = io.BytesIO(), pyarrow.Table.from_pylist([{**row, "tags": [{"a": 1}]} for row in PAIRS])
    with make(written, table.schema, options=ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(table)
    return written.getvalue()


def pairs_zstd() -> bytes:
    packed: bytes = pyarrow.compress(pairs_lines(), codec="zstd", asbytes=True)
    return packed


def mapping_text() -> bytes:
    return (
        b'shape = "columns"\nvalidation_share = 0.1\nseed = 7\nsystem_text = "Be brief."\n'
        b'[columns]\ninput = ["a", "b[0].c"]\n'
        b'output = "d"\n[[filters]]\ncolumn = "e"\nequals = "f"\n'
    )


PARSERS: dict[str, tuple[Callable[[], bytes], Callable[[Path, bytes], None], tuple[type[Exception], ...]]] = {
    "gguf": (gguf, read_gguf, (InvalidArgument,)),
    "safetensors": (safetensors, read_safetensors, (SafetensorError,)),
    "multipart": (
        lambda: body({"name": "x", "metadata": {"a": "b"}}, b"data" * 20),
        read_multipart,
        (InvalidArgument,),
    ),
    "jsonl": (row, read_row, (RowFault, SartoError)),
    "csv": (pairs_csv, converting("rows.csv"), (SartoError,)),
    "json list": (pairs_json, converting("rows.json"), (SartoError,)),
    "json lines": (pairs_lines, converting("rows.jsonl"), (SartoError,)),
    "parquet": (pairs_parquet, converting("rows.parquet"), (SartoError,)),
    "arrow stream": (lambda: pairs_arrow(ipc.new_stream), converting("rows.arrow"), (SartoError,)),
    "arrow file": (lambda: pairs_arrow(ipc.new_file, compression="lz4"), converting("rows.feather"), (SartoError,)),
    "gzip": (lambda: gzip.compress(pairs_lines(), mtime=0), converting("rows.jsonl.gz"), (SartoError,)),
    "zstd": (pairs_zstd, converting("rows.jsonl.zst"), (SartoError,)),
    "mapping": (mapping_text, lambda _, data: void(parse_mapping(data, "map")), (SartoError,)),
}


def void(_: object) -> None:
    """Nothing, of a result that nobody wants."""


@pytest.mark.parametrize("name", PARSERS)
def test_a_broken_input_is_an_error_and_never_a_crash(name: str, tmp_path: Path) -> None:
    make, read, refusals = PARSERS[name]
    good, random_ = make(), random.Random(name)
    read(tmp_path / "file", good)
    before, refused = peak_bytes(), 0
    for number in range(INPUTS):
        data = mutated(good, random_)
        try:
            read(tmp_path / "file", data)
        except refusals:
            refused += 1
        except Exception as error:
            pytest.fail(f"input {number} of {name} raised {error!r}: {data!r}")
    assert refused > INPUTS // 4
    assert peak_bytes() - before < MOST_GROWTH_BYTES + KEPT_BYTES.get(name, 0) * INPUTS
    print(f"\n{name}: {INPUTS} inputs, {refused} refused, {(peak_bytes() - before) >> 20} MiB more at the peak")


def peak_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
