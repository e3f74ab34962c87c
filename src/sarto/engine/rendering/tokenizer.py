"""Text to tokens and back for one model folder. `encode` treats the spelling of a special token as ordinary characters;
only the chat template places special tokens. Does not import transformers."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from sarto.conversations.conversation import Role, RowFault, Turn
from sarto.engine.rendering.chat_template import ChatTemplate
from sarto.engine.rendering.spans import training_pieces
from sarto.engine.rendering.word_table import WordTable
from sarto.errors import FailedPrecondition

COMPOSED = 4
"""Most characters that a normaliser joins into one."""
LONGEST_TOKEN = 4096
REPLACEMENT = "\ufffd"
# Pre-tokenizer patterns that always split before a space that follows a non-space.
_LETTERS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
KNOWN_SPLITS = frozenset(
    f"(?i:'s|'t|'re|'ve|'m|'ll|'d)|{_LETTERS}|{numbers}|{_REST}" for numbers in (r"\p{N}", r"\p{N}{1,3}")
)


def pack(ids: Iterable[int]) -> bytes:
    """Token ids as little-endian uint32 bytes."""
    return np.fromiter(ids, dtype="<u4").tobytes()


def to_list(packed: bytes) -> list[int]:
    ids: list[int] = unpack(packed).tolist()
    return ids


def unpack(packed: bytes) -> np.ndarray[Any, np.dtype[np.uint32]]:
    return np.frombuffer(packed, dtype="<u4")


class TokenDecoder:
    """Tokens to text for one model folder, for a process whose prompts were encoded elsewhere. Executes nothing of the
    chat template."""

    def __init__(self, folder: Path, tokenizer_json: str) -> None:
        self.folder = folder
        self._tokenizer = Tokenizer.from_str(tokenizer_json)
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = True
        self._added = self._tokenizer.get_added_tokens_decoder()
        self.special_ids = {token.content: number for number, token in self._added.items() if token.special}
        self._longest_token = max(map(len, self._tokenizer.get_vocab(with_added_tokens=True)))
        description = json.loads(tokenizer_json)
        _refuse_unsuitable(description, self._added, self.special_ids)
        _refuse_unbounded(description, self._longest_token)
        self.splits_at_spaces = _splits_at_spaces(description)

    @classmethod
    def of(cls, folder: Path | str) -> TokenDecoder:
        """Load from a base model's folder. Raises FailedPrecondition for an unsupported kind."""
        return TokenDecoder(Path(folder), _tokenizer_json(Path(folder)))

    def decode(self, ids: Iterable[int], *, skip_special_tokens: bool = True) -> str:
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens))

    def token_text(self, number: int) -> str:
        """One token as text, special ones by name; a piece of a character shows as U+FFFD."""
        return self.decode([number], skip_special_tokens=False)

    def stream(self, *, skip_special_tokens: bool = True) -> Detokenizer:
        return Detokenizer(self, skip_special_tokens)


class ChatTokenizer(TokenDecoder):
    """Tokenizer and chat template of one model. `digest` identifies both; `end_of_turn_ids` end a reply."""

    def __init__(
        self, folder: Path, tokenizer_json: str, template: str, variables: dict[str, str], end_ids: Iterable[int]
    ) -> None:
        super().__init__(folder, tokenizer_json)
        longest_first = sorted(self.special_ids, key=len, reverse=True)
        self.special_pattern = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
        self.template = ChatTemplate(template, variables)
        self.bos_id = self.special_ids.get(variables.get("bos_token", ""))
        self.vocabulary_size = self._tokenizer.get_vocab_size(with_added_tokens=True)
        self.words = WordTable(self._encode_many, splits_at_spaces=self.splits_at_spaces)
        """Table for encoding many texts at once."""
        parts = [tokenizer_json, template, json.dumps(variables, sort_keys=True)]
        self.digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()
        self.end_of_turn_ids = frozenset(end_ids) | self._closing_ids()
        self.plans: dict[tuple[Role, ...], Any] = {}
        """Plans of this template that `render` has made, by shape of conversation."""

    @classmethod
    def load(cls, folder: Path | str) -> ChatTokenizer:
        """Load from a base model's folder. Raises FailedPrecondition for a missing file or an unsupported kind."""
        folder = Path(folder)
        tokenizer_json = _tokenizer_json(folder)
        settings = _read_json(folder / "tokenizer_config.json")
        config = _read_json(folder / "config.json")
        generation = _read_json(folder / "generation_config.json")
        ends = generation.get("eos_token_id", config.get("eos_token_id"))
        end_ids = [] if ends is None else (ends if isinstance(ends, list) else [ends])
        variables = _special_variables(settings, config, json.loads(tokenizer_json)["added_tokens"])
        return cls(folder, tokenizer_json, _read_template(folder, settings), variables, end_ids)

    def encode(self, text: str) -> list[int]:
        """Tokens of plain text, without special tokens."""
        return to_list(self.encode_packed(text))

    def encode_packed(self, text: str) -> bytes:
        """`encode` as little-endian uint32 bytes, the form in which rows are stored."""
        return pack(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def _closing_ids(self) -> set[int]:
        """The token with which the template closes a reply."""
        probe = (Turn("user", "?"), Turn("model", "!"))
        try:
            row = training_pieces(self.template, probe, (), self.special_pattern)[-1]
        except RowFault as fault:
            raise FailedPrecondition(f"The chat template cannot be tuned on: {fault}") from None
        return {self.special_ids[self.special_pattern.findall(row[-1].text)[-1]]}

    def _encode_many(self, texts: list[str]) -> list[list[int]]:
        return [encoding.ids for encoding in self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)]

    def fewest_tokens(self, characters: int) -> int:
        """Fewest tokens that this number of characters can have; a cheap check for texts that are much too long."""
        return characters // (COMPOSED * self._longest_token)


class Detokenizer:
    """Converts tokens to text as they arrive: never half a character, and in total exactly `decode` of all of them."""

    def __init__(self, tokenizer: TokenDecoder, skip_special_tokens: bool = True) -> None:
        self._tokenizer, self._skips = tokenizer, skip_special_tokens
        self._ids: list[int] = []
        self._start = 0
        self._read = 0

    def push(self, number: int) -> str:
        """The text that this token completes; empty while a character is unfinished."""
        self._ids.append(number)
        known, text = self._texts()
        if text.endswith(REPLACEMENT) or len(text) <= len(known):
            return ""
        self._start, self._read = self._read, len(self._ids)
        return text[len(known) :]

    def flush(self) -> str:
        """The remaining text at the end, with unfinished characters as U+FFFD."""
        known, text = self._texts()
        self._start = self._read = len(self._ids)
        return text[len(known) :]

    def _texts(self) -> tuple[str, str]:
        known, every = self._ids[self._start : self._read], self._ids[self._start :]
        decode, skips = self._tokenizer.decode, self._skips
        return decode(known, skip_special_tokens=skips), decode(every, skip_special_tokens=skips)


def _tokenizer_json(folder: Path) -> str:
    if not (folder / "tokenizer.json").exists():
        raise FailedPrecondition(f"{folder.name} has no tokenizer.json.")
    return (folder / "tokenizer.json").read_text(encoding="utf-8")


def _read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _read_template(folder: Path, settings: dict[str, Any]) -> str:
    file = folder / "chat_template.jinja"
    if file.exists():
        return file.read_text(encoding="utf-8")
    template = settings.get("chat_template")
    if isinstance(template, list):
        named = {entry["name"]: entry["template"] for entry in template}
        template = named.get("default")
    if not isinstance(template, str):
        raise FailedPrecondition(f"{folder.name} has no chat template; tune an instruction-tuned base model.")
    return template


def _special_variables(settings: dict[str, Any], config: dict[str, Any], added: list[dict[str, Any]]) -> dict[str, str]:
    """`bos_token` and similar as text: from the tokenizer's settings, else by the ids of the configuration."""
    by_id = {token["id"]: token["content"] for token in added}
    variables: dict[str, str] = {}
    for name in ("bos_token", "eos_token", "pad_token", "unk_token"):
        value = settings.get(name)
        value = value.get("content") if isinstance(value, dict) else value
        if value is None:
            number = config.get(f"{name}_id")
            number = number[0] if isinstance(number, list) and number else number
            value = by_id.get(number) if isinstance(number, int) else None
        if isinstance(value, str):
            variables[name] = value
    return variables


def _refuse_unsuitable(description: dict[str, Any], added: dict[int, Any], specials: dict[str, int]) -> None:
    """Refuse tokenizers for which separately encoded parts differ from the tokens of the whole."""
    for content, number in specials.items():
        token = added[number]
        if token.lstrip or token.rstrip or token.single_word:
            raise FailedPrecondition(
                f"The tokenizer's {content} absorbs the spaces around it; this kind is not supported."
            )
    for part in (*_parts(description, "normalizer"), *_parts(description, "pre_tokenizer")):
        if part["type"] in ("Prepend", "Metaspace") or part.get("add_prefix_space"):
            raise FailedPrecondition(
                f"The tokenizer ({part['type']}) puts a space in front of every text; this kind is not supported."
            )


def _refuse_unbounded(description: dict[str, Any], longest: int) -> None:
    """Refuse patterns and long tokens in the decoder. The worker decodes every token beside other requests, so decoding
    must not take time."""
    if longest > LONGEST_TOKEN:
        raise FailedPrecondition(
            f"The tokenizer has a token of {longest} characters; at most {LONGEST_TOKEN} are allowed."
        )
    for part in _parts(description, "decoder"):
        if part["type"] == "Replace" and ("String" not in part["pattern"] or len(part["content"]) > 16):
            raise FailedPrecondition(
                "The tokenizer's decoder replaces a pattern, or inserts a long text; this is not supported."
            )


def _parts(description: dict[str, Any], key: str) -> list[dict[str, Any]]:
    part = description.get(key)
    if part is None:
        return []
    inner = part.get("normalizers") or part.get("pretokenizers") or part.get("decoders")
    return list(inner) if part["type"] == "Sequence" else [part]


def _splits_at_spaces(description: dict[str, Any]) -> bool:
    """Whether a text can be cut before every space that follows a non-space, in any context."""
    for token in description["added_tokens"]:
        if re.search(r"\S ", token["content"]) or token["rstrip"] or token["normalized"]:
            return False
    space = " "
    for part in _parts(description, "normalizer"):
        if part["type"] == "Replace" and part["pattern"] == {"String": " "}:
            space = part["content"]
        elif part["type"] != "NFC":
            return False
    return _pre_tokenizer_splits(_parts(description, "pre_tokenizer")) or _no_token_spans(description, space)


def _pre_tokenizer_splits(parts: list[dict[str, Any]]) -> bool:
    splits = False
    for part in parts:
        if part["type"] == "ByteLevel":
            splits = splits or part.get("use_regex", True)
        elif part["type"] == "Split" and part["pattern"].get("Regex") in KNOWN_SPLITS:
            splits = splits or (part["behavior"] == "Isolated" and not part["invert"])
        elif part["type"] != "Digits":
            return False
    return splits


def _no_token_spans(description: dict[str, Any], space: str) -> bool:
    """Whether, without a splitting pre-tokenizer, no token of the vocabulary spans a non-space and a following
    space."""
    model, parts = description["model"], _parts(description, "pre_tokenizer")
    if model["type"] != "BPE" or (model.get("fuse_unk") and not model.get("byte_fallback")):
        return False
    if any(part["type"] != "Split" or part["pattern"] != {"String": " "} for part in parts):
        return False
    spans = re.compile(f"[^{re.escape(space)}]{re.escape(space)}")
    return not any(spans.search(token) for token in model["vocab"])
