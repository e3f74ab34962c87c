"""An export that differs from what is served is refused with the numbers; what GGUF cannot hold is refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from sarto.engine.exports import run
from sarto.engine.exports.run import compare, export, write_files
from sarto.errors import FailedPrecondition
from sarto.schema.runs import ExportFormat, ExportSpec
from tests.serving.making import make_adapter
from tests.tiny import make_tiny_base


def spec_for(folder: Path, family: str, form: ExportFormat) -> ExportSpec:
    base = make_tiny_base(folder / family, family)
    key = make_adapter(base, folder / "adapter")
    reply = {"role": "model", "parts": [{"text": "yes"}]}
    rows = [{"contents": [{"role": "user", "parts": [{"text": f"q{n}"}]}, reply]} for n in range(2)]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    spec = ExportSpec(
        model="m", format=form, base=base, adapter_folder=key.folder, folder=str(folder), threads=1,
        held_out=str(folder / "rows.jsonl"), held_out_uri="gs://b/rows.jsonl",
    )  # fmt: skip
    (folder / "spec.json").write_text(spec.model_dump_json())
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

    monkeypatch.setattr(run, "write_files", spoil)
    with pytest.raises(FailedPrecondition, match=r"diverges from the served model by [\d.]+ nats a token, 0\.02 is"):
        export(spec, tmp_path / "spec.json")


def test_another_tokenizer_is_noticed(tmp_path: Path) -> None:
    spec = spec_for(tmp_path, "llama", "merged-safetensors")
    files = tmp_path / "files"
    files.mkdir()
    write_files(spec, files)
    template = files / "chat_template.jinja"
    template.write_text(template.read_text().replace("helpful", "helpless"))
    with pytest.raises(FailedPrecondition, match="other token ids"):
        compare(spec, tmp_path / "spec.json")


@pytest.mark.parametrize("family", ["qwen3", "gemma3"])
def test_bases_that_gguf_is_not_written_for_are_refused_by_name(tmp_path: Path, family: str) -> None:
    spec = spec_for(tmp_path, family, "gguf-f16")
    with pytest.raises(FailedPrecondition, match=f"bases of type {family}.*merged-safetensors"):
        export(spec, tmp_path / "spec.json")
