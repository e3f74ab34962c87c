"""GGUF in: values equal the format's definition, and a broken file is refused, not crashed on."""

import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sarto.engine.weights.gguf_reader import open_gguf
from sarto.errors import InvalidArgument


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def build(tensors: dict[str, tuple[tuple[int, ...], int, bytes]], pairs: bytes = b"", pair_count: int = 0) -> bytes:
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), pair_count) + pairs
    body = b""
    for name, (shape, kind, raw) in tensors.items():
        head += text(name) + struct.pack("<I", len(shape)) + b"".join(struct.pack("<Q", n) for n in reversed(shape))
        head += struct.pack("<IQ", kind, len(body))
        body += raw + b"\0" * (-len(raw) % 32)
    return head + b"\0" * (-len(head) % 32) + body


def half(value: float) -> bytes:
    return np.float16(value).tobytes()


def read(tmp_path: Path, data: bytes, name: str = "w") -> np.ndarray:
    path = tmp_path / "file.gguf"
    path.write_bytes(data)
    with open_gguf(path) as file:
        return file.tensor(name)


def test_each_storage_type_decodes_to_its_definition(tmp_path):
    low, high = list(range(16)), list(range(15, -1, -1))
    packed = bytes(a | b << 4 for a, b in zip(low, high, strict=True))
    quants = np.array(low + high, np.float32)
    values = np.linspace(-1, 1, 32, dtype=np.float32)
    signed = np.arange(-16, 16, dtype=np.int8)
    cases = {
        0: (values.tobytes(), values),
        1: (values.astype(np.float16).tobytes(), values.astype(np.float16).astype(np.float32)),
        2: (half(0.5) + packed, (quants - 8) * 0.5),
        3: (half(0.5) + half(-2.0) + packed, quants * 0.5 - 2.0),
        8: (half(0.25) + signed.tobytes(), signed.astype(np.float32) * 0.25),
        30: (
            (values.view(np.uint32) >> 16).astype(np.uint16).tobytes(),
            (values.view(np.uint32) & 0xFFFF0000).view(np.float32),
        ),
    }
    for kind, (raw, expected) in cases.items():
        np.testing.assert_array_equal(read(tmp_path, build({"w": ((1, 32), kind, raw)}))[0], expected)


def test_metadata_of_every_kind_is_read(tmp_path):
    pairs = text("a") + struct.pack("<II", 4, 7) + text("b") + struct.pack("<I", 8) + text("text")
    pairs += text("c") + struct.pack("<IIQ", 9, 8, 2) + text("x") + text("y")
    path = tmp_path / "m.gguf"
    path.write_bytes(build({"w": ((1, 2), 0, b"\0" * 8)}, pairs, 3))
    with open_gguf(path) as file:
        assert file.metadata == {"a": 7, "b": "text", "c": ["x", "y"]}


@pytest.mark.parametrize("cut", range(0, 120, 7))
def test_a_cut_file_is_refused(tmp_path, cut):
    with pytest.raises(InvalidArgument):
        read(tmp_path, build({"w": ((1, 32), 0, b"\1" * 128)})[:cut])


def test_claims_beyond_the_file_are_refused_by_name(tmp_path):
    with pytest.raises(InvalidArgument, match="beyond the end"):
        read(tmp_path, build({"w": ((1000, 32), 0, b"\0" * 128)}))
    with pytest.raises(InvalidArgument, match="storage type 99"):
        read(tmp_path, build({"w": ((1, 32), 99, b"\0" * 128)}))
    with pytest.raises(InvalidArgument, match="items"):
        read(tmp_path, build({}, text("a") + struct.pack("<IIQ", 9, 4, 2**60), 1))


@settings(max_examples=500, deadline=None)
@given(st.data())
def test_no_corruption_of_a_header_does_more_than_refuse(tmp_path_factory, data):
    whole = bytearray(build({"w": ((4, 32), 3, b"\1" * 80)}, text("k") + struct.pack("<II", 4, 1), 1))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    try:
        read(tmp_path_factory.mktemp("g"), bytes(whole))
    except InvalidArgument:
        pass


def test_a_tensor_without_values_and_tensors_that_overlap_are_refused(tmp_path):
    with pytest.raises(InvalidArgument, match="no values"):
        read(tmp_path, build({"w": ((0, 2**63), 0, b"")}))
    good = build({"v": ((1, 32), 0, b"\1" * 128), "w": ((1, 32), 0, b"\2" * 128)})
    at = good.index(struct.pack("<IQ", 0, 128)) + 4
    with pytest.raises(InvalidArgument, match="overlap"):
        read(tmp_path, good[:at] + struct.pack("<Q", 64) + good[at + 8 :])
