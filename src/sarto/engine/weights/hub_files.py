"""The files of a model beside its weights, in the layout that a stock library opens."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

TEXT_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
MODEL_FILES = ("config.json", "generation_config.json")


def copy_texts(base: Path, folder: Path) -> None:
    """Copy tokenizer and chat template."""
    _copy(base, folder, TEXT_FILES)
    if not (folder / "tokenizer_config.json").exists():
        (folder / "tokenizer_config.json").write_text(json.dumps(_tokenizer_config(base), indent=2))


def copy_configuration(base: Path, folder: Path, dtype: str = "") -> None:
    """Copy the model's configuration; `dtype` names the type of the weights if it is not the base's."""
    _copy(base, folder, MODEL_FILES)
    if dtype:
        config: dict[str, Any] = json.loads((base / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "torch_dtype": dtype}, indent=2))


def _copy(base: Path, folder: Path, names: tuple[str, ...]) -> None:
    for name in names:
        if (base / name).exists():
            shutil.copyfile(base / name, folder / name)


def _tokenizer_config(base: Path) -> dict[str, object]:
    """The configuration with special tokens that transformers needs beside `tokenizer.json`."""
    config = json.loads((base / "config.json").read_text())
    added = json.loads((base / "tokenizer.json").read_text(encoding="utf-8"))["added_tokens"]
    texts = {row["id"]: row["content"] for row in added}
    found: dict[str, object] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    for name in ("bos", "eos", "pad"):
        number = config.get(f"{name}_token_id")
        number = number[0] if isinstance(number, list) else number
        if number in texts:
            found[f"{name}_token"] = texts[number]
    return found
