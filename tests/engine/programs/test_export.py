"""An export that differs from what is served is refused with the numbers; what GGUF cannot hold is refused by name."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, pre_tokenizers

from sarto.contract.export_run import ExportFormat, ExportSpec
from sarto.engine.models.load import read_config
from sarto.engine.programs.export import KL_TOLERANCES, compare, export, write_files
from sarto.engine.programs.export_check import GGUF_FILE
from sarto.engine.weights import gguf_writer
from sarto.engine.weights.convert import convert_gguf
from sarto.errors import FailedPrecondition, InvalidArgument
from tests.serving.making import make_adapter
from tests.specs import arguments, write_spec
from tests.tiny import make_tiny_base
from tests.tiny_tokenizers import QWEN2, TOKENIZERS, by_pattern, with_specials

LLAMA3_ROTARY = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
SHAPES: dict[str, dict[str, Any]] = {
    "qwen2": {"tie_word_embeddings": True, "rms_norm_eps": 1e-6, "rope_theta": 1000000.0},
    "qwen3": {"head_dim": 16, "rms_norm_eps": 1e-6, "rope_theta": 1000000.0},
    "llama": {"rope_scaling": LLAMA3_ROTARY, "rope_theta": 500000.0},
    "gemma3": {"head_dim": 16, "query_pre_attn_scalar": 16, "rms_norm_eps": 1e-6},
}
"""What their real bases say that the tiny ones do not."""
TEXTS = ["It's 12345 and  the user's system,\n\nthen   café — 日本 🙂.", "They'll see <think> x = 3.14159;\tok"]


def gemma3_with_digits() -> Tokenizer:
    tokenizer = TOKENIZERS["gemma3"]()
    tokenizer.pre_tokenizer = pre_tokenizers.Digits(individual_digits=True)
    return tokenizer


def spec_for(folder: Path, family: str, form: ExportFormat, **making: Any) -> ExportSpec:
    base = make_tiny_base(folder / family, family, **making)
    key = make_adapter(base, folder / "adapter")
    reply = {"role": "model", "parts": [{"text": TEXTS[1]}]}
    rows = [{"contents": [{"role": "user", "parts": [{"text": text}]}, reply]} for text in TEXTS]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    spec = ExportSpec(
        model="m", format=form, base=base, adapter_folder=key.folder, folder=str(folder), threads=1,
        held_out=str(folder / "rows.jsonl"), held_out_uri="gs://b/rows.jsonl",
    )  # fmt: skip
    write_spec(spec, folder / "spec.json")
    return spec


def test_files_that_differ_from_the_served_model_are_refused_with_the_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = spec_for(tmp_path, "llama", "merged-safetensors")

    def spoil(spec: ExportSpec, files: Path) -> None:
        write_files(spec, files)
        tensors = load_file(files / "model.safetensors")
        tensors["model.layers.0.mlp.down_proj.weight"] *= -1
        save_file(tensors, files / "model.safetensors", metadata={"format": "pt"})

    monkeypatch.setattr("sarto.engine.programs.export.write_files", spoil)
    with pytest.raises(FailedPrecondition, match=r"diverges from the served model by [\d.]+ nats a token, 0\.02 is"):
        export(spec, arguments(tmp_path / "spec.json"))


def test_an_exported_adapter_and_its_card_name_the_base_as_others_find_it(tmp_path: Path) -> None:
    spec = spec_for(tmp_path, "llama", "adapter")
    hub = "HuggingFaceTB/SmolLM2-135M-Instruct"
    spec = spec.model_copy(update={"base": spec.base.model_copy(update={"hub": hub})})
    write_spec(spec, tmp_path / "spec.json")
    export(spec, arguments(tmp_path / "spec.json"))
    config = json.loads((tmp_path / "files" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == hub
    assert f'base_model: "{hub}"' in (tmp_path / "files" / "README.md").read_text()


def test_another_tokenizer_is_noticed(tmp_path: Path) -> None:
    spec = spec_for(tmp_path, "llama", "merged-safetensors")
    files = tmp_path / "files"
    files.mkdir()
    write_files(spec, files)
    template = files / "chat_template.jinja"
    template.write_text(template.read_text().replace("helpful", "helpless"))
    with pytest.raises(FailedPrecondition, match="other token ids"):
        compare(spec, arguments(tmp_path / "spec.json"))


@pytest.mark.parametrize("form", ["gguf-f16", "gguf-q8-0"])
@pytest.mark.parametrize("family", SHAPES)
def test_gguf_of_every_family_answers_as_the_served_model(tmp_path: Path, family: str, form: ExportFormat) -> None:
    calm = 5  # a seed whose answers are not so sharp that roundings alone come near the bounds
    spec = spec_for(tmp_path, family, form, tokenizer=TOKENIZERS[family](), seed=calm, **SHAPES[family])
    result = export(spec, arguments(tmp_path / "spec.json"))
    assert result.files == ["README.md", GGUF_FILE]
    assert result.comparison is not None and result.comparison.reply_tokens > 20
    assert result.comparison.mean_kl_nats < KL_TOLERANCES[form] / 2


@pytest.mark.parametrize("family", SHAPES)
def test_a_tokenizer_read_from_gguf_gives_the_tokens_of_the_base(tmp_path: Path, family: str) -> None:
    tokenizer = TOKENIZERS[family]()
    spec = spec_for(tmp_path, family, "gguf-f16", tokenizer=tokenizer, **SHAPES[family])
    (tmp_path / "files").mkdir()
    write_files(spec, tmp_path / "files")
    convert_gguf(tmp_path / "files" / GGUF_FILE, tmp_path / "read")
    found = Tokenizer.from_file(str(tmp_path / "read" / "tokenizer.json"))
    for text in TEXTS:
        assert found.encode(text).ids == tokenizer.encode(text).ids
    assert decoder_facts(tmp_path / "read") == decoder_facts(Path(spec.base.folder))


def decoder_facts(folder: Path) -> list[Any]:
    config = read_config(folder)
    facts = dataclasses.asdict(config)
    frequencies = torch.stack(facts.pop("inverse_frequencies"))
    return [facts, [[float(f"{value:.5g}") for value in row] for row in frequencies.tolist()]]


@pytest.mark.parametrize(
    "family, changes, told",
    [
        ("qwen2", {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "qwen2 with rotary scaling linear"),
        ("llama", {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "llama with rotary scaling linear"),
        ("llama", {"sliding_window": 16}, "llama with sliding windows"),
        ("gemma3", {"query_pre_attn_scalar": 24}, "gemma3 with a query scale of its own"),
        ("gemma3", {"tokenizer": gemma3_with_digits()}, "bytes and pieces with Replace; Digits"),
        ("qwen3", {"tokenizer": with_specials(by_pattern(QWEN2))}, "splits by Split .* and ByteLevel"),
        ("llama", {"tokenizer": with_specials(by_pattern(r"\s+|\S+"))}, r"splits by Split .* and ByteLevel"),
    ],
)
def test_what_llama_cpp_would_compute_in_another_way_is_refused_by_name(
    tmp_path: Path, family: str, changes: dict[str, Any], told: str
) -> None:
    spec = spec_for(tmp_path, family, "gguf-f16", **changes)
    with pytest.raises(FailedPrecondition, match=f"{told}.*merged-safetensors"):
        export(spec, arguments(tmp_path / "spec.json"))
    assert not list((tmp_path / "files").iterdir())


def test_values_that_half_precision_cannot_hold_leave_no_file(tmp_path: Path) -> None:
    spec = spec_for(tmp_path, "llama", "gguf-f16")
    weights = Path(spec.base.folder) / "model.safetensors"
    tensors = load_file(weights)
    tensors["model.norm.weight"][0] = 1e6  # norms stay float32
    tensors["model.layers.1.mlp.up_proj.weight"][0, 0] = 1e6
    save_file(tensors, weights, metadata={"format": "pt"})
    (tmp_path / "files").mkdir()
    with pytest.raises(FailedPrecondition, match=r"blk\.1\.ffn_up\.weight has values beyond half precision"):
        write_files(spec, tmp_path / "files")
    assert not (tmp_path / "files" / GGUF_FILE).exists()


def test_an_adapter_that_does_not_fit_leaves_no_file(tmp_path: Path) -> None:
    spec = spec_for(tmp_path, "llama", "gguf-f16")
    weights = Path(spec.adapter_folder) / "adapter_model.safetensors"
    tensors = load_file(weights)
    name = next(name for name in tensors if "layers.1" in name and "down_proj.lora_A" in name)
    tensors[name] = tensors[name][:, :-2].contiguous()
    save_file(tensors, weights, metadata={"format": "pt"})
    (tmp_path / "files").mkdir()
    with pytest.raises(InvalidArgument, match="does not fit the base"):
        write_files(spec, tmp_path / "files")
    assert not (tmp_path / "files" / GGUF_FILE).exists()


def test_a_base_of_an_unknown_type_is_refused_by_name(tmp_path: Path) -> None:
    spec = spec_for(tmp_path, "llama", "gguf-f16")
    config = Path(spec.base.folder) / "config.json"
    config.write_text(config.read_text().replace('"model_type": "llama"', '"model_type": "phi3"'))
    with pytest.raises(FailedPrecondition, match=r"bases of type phi3.*merged-safetensors"):
        export(spec, arguments(tmp_path / "spec.json"))


@pytest.mark.parametrize(
    "change, told",
    [
        ({"qwen3.block_count": 2**31}, "for 2147483648 layers"),
        ({"qwen3.rope.freq_base": "x"}, "rope.freq_base is not one number"),
        ({"qwen3.attention.value_length": 8}, "value_length differs from head_dim 16"),
        ({"qwen3.rope.scaling.type": "yarn"}, "rope.scaling.type 'yarn'"),
        ({"general.architecture": "qwen2"}, "has no qwen2.context_length"),
        ({"tokenizer.ggml.pre": "gpt-4o"}, "'gpt2'/'gpt-4o'"),
        ({"tokenizer.ggml.model": "llama", "tokenizer.ggml.add_space_prefix": False}, "no score for each token"),
    ],
)
def test_gguf_that_would_be_read_as_something_else_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], told: str
) -> None:
    spec = spec_for(tmp_path, "qwen3", "gguf-f16", tokenizer=TOKENIZERS["qwen3"](), **SHAPES["qwen3"])
    (tmp_path / "files").mkdir()
    write = gguf_writer._write
    monkeypatch.setattr(gguf_writer, "_write", lambda target, found, *more: write(target, found | change, *more))
    write_files(spec, tmp_path / "files")
    with pytest.raises(InvalidArgument, match=told):
        convert_gguf(tmp_path / "files" / GGUF_FILE, tmp_path / "read")
    assert not (tmp_path / "read").exists()
