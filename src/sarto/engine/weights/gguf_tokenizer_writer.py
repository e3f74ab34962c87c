"""A base's `tokenizer.json` and chat template as GGUF metadata; the counterpart of `gguf_tokenizer_reader.py`. A
tokenizer that llama.cpp would split differently is refused by name."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from sarto.engine.weights.gguf_tokenizer_reader import (
    BYTE,
    BYTES,
    CONTROL,
    NORMAL,
    SPACE,
    SPLITTINGS,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    WORDS,
    PreTokenizer,
)
from sarto.errors import FailedPrecondition

REFUSAL = "Export it as merged-safetensors and use llama.cpp's own converter."
AT_SPACES = ("Split", "at spaces")
"""Spaces are SPACE at this step, so this step splits nothing."""
BYTE_PIECE = re.compile(r"<0x[0-9A-F]{2}>")


def tokenizer_metadata(base: Path, config: dict[str, Any]) -> dict[str, Any]:
    """The metadata. Raises FailedPrecondition for an unsupported kind of tokenizer."""
    tokenizer = json.loads((base / "tokenizer.json").read_text(encoding="utf-8"))
    generation: dict[str, Any] = {}
    if (base / "generation_config.json").exists():
        generation = json.loads((base / "generation_config.json").read_text())
    end = generation.get("eos_token_id", config.get("eos_token_id"))
    model = tokenizer["model"]
    if model["type"] != "BPE":
        raise FailedPrecondition(f"GGUF export does not support tokenizers of type {model['type']}. {REFUSAL}")
    metadata = _by_score(tokenizer, config) if model.get("byte_fallback") else _byte_level(tokenizer, config)
    first = _first_id(tokenizer)
    metadata |= {
        "tokenizer.ggml.eos_token_id": end[0] if isinstance(end, list) else end,
        "tokenizer.ggml.bos_token_id": config.get("bos_token_id") if first is None else first,
        "tokenizer.ggml.padding_token_id": config.get("pad_token_id"),
        "tokenizer.ggml.add_bos_token": first is not None,
        "tokenizer.chat_template": (base / "chat_template.jinja").read_text(encoding="utf-8"),
    }
    return {key: value for key, value in metadata.items() if value is not None and value != []}


def _byte_level(tokenizer: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    rows = _rows(tokenizer, config["vocab_size"])
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": _splitting(tokenizer),
        "tokenizer.ggml.tokens": [text for text, _ in rows],
        "tokenizer.ggml.token_type": [kind for _, kind in rows],
        "tokenizer.ggml.merges": [" ".join(pair) for pair in _merges(tokenizer)],
    }


def _by_score(tokenizer: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    """Scores from merges: earlier merges have higher scores."""
    normalizers = _parts(tokenizer.get("normalizer"), "normalizers")
    steps = [_step(part) for part in _parts(tokenizer.get("pre_tokenizer"), "pretokenizers")]
    is_known = [(part["type"], part.get("pattern"), part.get("content")) for part in normalizers] == [
        ("Replace", {"String": " "}, SPACE)
    ]
    if not is_known or steps not in ([], [AT_SPACES]):
        described = ", ".join(part["type"] for part in normalizers) + "; " + ", ".join(" ".join(step) for step in steps)
        raise FailedPrecondition(
            f"GGUF export does not support a tokenizer of bytes and pieces with {described}. {REFUSAL}"
        )
    merges = _merges(tokenizer)
    ranks: dict[str, int] = {}
    for rank, (left, right) in enumerate(merges):
        ranks.setdefault(left + right, rank)
    rows = [_piece(text, kind, tokenizer) for text, kind in _rows(tokenizer, config["vocab_size"])]
    unknown = [number for number, (_, kind) in enumerate(rows) if kind == UNKNOWN]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": [text for text, _ in rows],
        "tokenizer.ggml.scores": [-float(ranks.get(text, len(merges))) for text, _ in rows],
        "tokenizer.ggml.token_type": [kind for _, kind in rows],
        "tokenizer.ggml.unknown_token_id": unknown[0] if unknown else None,
        "tokenizer.ggml.add_space_prefix": False,
    }


def _piece(text: str, kind: int, tokenizer: dict[str, Any]) -> tuple[str, int]:
    """A token of a tokenizer with scores. llama.cpp searches user-defined tokens in text before its spaces become
    SPACE. Ours finds one that is spelled with SPACE only if it is `normalized`, else it results from merges."""
    if BYTE_PIECE.fullmatch(text):
        return text, BYTE
    if text == tokenizer["model"].get("unk_token"):
        return text, UNKNOWN
    if kind == USER_DEFINED and SPACE in text:
        is_normalized = any(row["normalized"] for row in tokenizer["added_tokens"] if row["content"] == text)
        return (text.replace(SPACE, " "), USER_DEFINED) if is_normalized else (text, NORMAL)
    return text, kind


def _rows(tokenizer: dict[str, Any], size: int) -> list[tuple[str, int]]:
    """Text and type of every token id of the model."""
    ids: dict[int, tuple[str, int]] = {number: (text, NORMAL) for text, number in tokenizer["model"]["vocab"].items()}
    for row in tokenizer["added_tokens"]:
        ids[row["id"]] = row["content"], CONTROL if row["special"] else USER_DEFINED
    return [ids.get(number, (f"[unused{number}]", UNUSED)) for number in range(size)]


def _merges(tokenizer: dict[str, Any]) -> list[tuple[str, str]]:
    pairs: list[list[str]] = [
        merge.split(" ", 1) if isinstance(merge, str) else merge for merge in tokenizer["model"]["merges"]
    ]
    return [(left, right) for left, right in pairs]


def _splitting(tokenizer: dict[str, Any]) -> str:
    """llama.cpp's name for the splitting of text before the merges."""
    normalizers = _parts(tokenizer.get("normalizer"), "normalizers")
    steps = tuple(_step(part) for part in _parts(tokenizer.get("pre_tokenizer"), "pretokenizers"))
    normalizer = "+".join(part["type"] for part in normalizers) or None
    pre_tokenizer = PreTokenizer(steps, normalizer, bool(tokenizer["model"].get("ignore_merges")))
    for name, splitting in SPLITTINGS.items():
        if splitting == pre_tokenizer:
            return name
    described = " and ".join(" ".join(step).strip() for step in steps) or "nothing"
    raise FailedPrecondition(
        f"GGUF export does not support a tokenizer that splits by {described}"
        f"{f' after {normalizer}' if normalizer else ''}: llama.cpp has no name for it that we know. {REFUSAL}"
    )


def _parts(part: dict[str, Any] | None, inner: str) -> list[dict[str, Any]]:
    if part is None:
        return []
    return list(part[inner]) if part["type"] == "Sequence" else [part]


def _step(part: dict[str, Any]) -> tuple[str, str]:
    """A step as in SPLITTINGS; any other is its kind and its arguments."""
    match part:
        case {"type": "ByteLevel", "add_prefix_space": False}:
            return WORDS if part.get("use_regex", True) else BYTES
        case {"type": "Digits", "individual_digits": True}:
            return "Digits", "single"
        case {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}:
            return AT_SPACES
        case {"type": "Split", "pattern": {"Regex": str(pattern)}, "behavior": "Isolated", "invert": False}:
            return "Split", pattern
    return part["type"], json.dumps({key: value for key, value in part.items() if key != "type"})


def _first_id(tokenizer: dict[str, Any]) -> int | None:
    """The special token that the base's tokenizer puts before every text."""
    for part in _parts(tokenizer.get("post_processor"), "processors"):
        if part["type"] == "TemplateProcessing" and "SpecialToken" in part["single"][0]:
            return int(part["special_tokens"][part["single"][0]["SpecialToken"]["id"]]["ids"][0])
    return None
