"""The two kinds of GGUF tokenizers for the supported families, in the form of the `tokenizers` library: byte-level BPE
with a known way of splitting words, and SentencePiece's merges by score with byte fallback.

`gguf_tokenizer_writer.py` is the counterpart and uses the same tables.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeGuard

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from sarto.errors import InvalidArgument

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""GGUF's types of token."""
SPACE = "▁"
LONGEST_PIECE = 1000


def _words(numbers: str) -> tuple[str, str]:
    """Contractions, words with the character before them, numbers, punctuation, line ends, other space."""
    pattern = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|" + numbers + r"| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    return "Split", pattern


@dataclass(frozen=True)
class PreTokenizer:
    """Preprocessing of a byte-level tokenizer before its merges; `steps` are pairs of a kind and its argument."""

    steps: tuple[tuple[str, str], ...]
    normalizer: str | None = None
    ignores_merges: bool = False
    """Whether a word of the vocabulary is always one token, without merges."""


WORDS, BYTES = ("ByteLevel", "words"), ("ByteLevel", "")
SPLITTINGS = {
    "gpt-2": PreTokenizer((WORDS,)),
    "smollm": PreTokenizer((("Digits", "single"), WORDS)),
    "qwen2": PreTokenizer((_words(r"\p{N}"), BYTES), normalizer="NFC"),
    "llama-bpe": PreTokenizer((_words(r"\p{N}{1,3}"), BYTES), ignores_merges=True),
}
"""By llama.cpp's name, `tokenizer.ggml.pre`."""


def read_tokenizer(metadata: dict[str, Any]) -> Tokenizer:
    """Build the tokenizer. Raises InvalidArgument for an unsupported kind."""
    kind, split = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre")
    tokens, kinds = metadata.get("tokenizer.ggml.tokens"), metadata.get("tokenizer.ggml.token_type")
    if not _are_texts(tokens) or not isinstance(kinds, list) or len(tokens) != len(kinds):
        raise InvalidArgument("GGUF metadata has no list of tokens with a type for each.")
    if kind == "gpt2" and split in SPLITTINGS:
        merges = metadata.get("tokenizer.ggml.merges", [])
        if not _are_texts(merges):
            raise InvalidArgument("GGUF metadata has merges that are no texts.")
        tokenizer = _byte_level(tokens, merges, SPLITTINGS[split])
    elif kind == "llama" and metadata.get("tokenizer.ggml.add_space_prefix") is False:
        tokens = [
            text.replace(" ", SPACE) if one == USER_DEFINED else text for text, one in zip(tokens, kinds, strict=True)
        ]
        tokenizer = _by_score(tokens, kinds, metadata)
    else:
        raise InvalidArgument(f"Tokenizer {kind!r}/{split!r} is not supported for GGUF.")
    for text, one in zip(tokens, kinds, strict=True):
        if one in (CONTROL, UNKNOWN):
            tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False)])
        elif one == USER_DEFINED:
            tokenizer.add_tokens([AddedToken(text, special=False, normalized=SPACE in text)])
    first = metadata.get("tokenizer.ggml.bos_token_id")
    if metadata.get("tokenizer.ggml.add_bos_token") and isinstance(first, int) and first < len(tokens):
        tokenizer.post_processor = processors.TemplateProcessing(
            single=[tokens[first], "$A"], special_tokens=[(tokens[first], first)]
        )
    return tokenizer


def _are_texts(values: Any) -> TypeGuard[list[str]]:
    return isinstance(values, list) and all(isinstance(value, str) for value in values)


def _byte_level(tokens: list[str], merges: list[str], splitting: PreTokenizer) -> Tokenizer:
    pairs = [(left, right) for left, _, right in (merge.partition(" ") for merge in merges)]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    model = models.BPE(vocab=vocabulary, merges=pairs, ignore_merges=splitting.ignores_merges)
    tokenizer = Tokenizer(model)
    if splitting.normalizer == "NFC":
        tokenizer.normalizer = normalizers.NFC()
    steps = [_step(*step) for step in splitting.steps]
    tokenizer.pre_tokenizer = steps[0] if len(steps) == 1 else pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _step(kind: str, argument: str) -> pre_tokenizers.PreTokenizer:
    if kind == "ByteLevel":
        return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=argument == "words")
    if kind == "Digits":
        return pre_tokenizers.Digits(individual_digits=True)
    return pre_tokenizers.Split(Regex(argument), "isolated")


def _by_score(tokens: list[str], kinds: list[int], metadata: dict[str, Any]) -> Tokenizer:
    scores = metadata.get("tokenizer.ggml.scores")
    if not isinstance(scores, list) or len(scores) != len(tokens) or not all(isinstance(s, float) for s in scores):
        raise InvalidArgument("GGUF metadata has no score for each token.")
    unknown = [text for text, kind in zip(tokens, kinds, strict=True) if kind == UNKNOWN]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    model = models.BPE(
        vocab=vocabulary,
        merges=merges_by_score(vocabulary, kinds, scores),
        unk_token=unknown[0] if unknown else None,
        fuse_unk=True,
        byte_fallback=True,
    )
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Replace(" ", SPACE)
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
    return tokenizer


def merges_by_score(vocabulary: dict[str, int], kinds: list[int], scores: list[float]) -> list[tuple[str, str]]:
    """Every way to join a piece from two others, pieces with a high score first."""
    merges: list[tuple[str, str]] = []
    pieces = [(text, number) for text, number in vocabulary.items() if kinds[number] in (NORMAL, USER_DEFINED)]
    for text, _ in sorted(pieces, key=lambda piece: -scores[piece[1]]):
        if len(text) > LONGEST_PIECE:
            raise InvalidArgument(f"GGUF metadata has a token of {len(text)} characters.")
        pairs = [(text[:cut], text[cut:]) for cut in range(1, len(text))]
        known = [pair for pair in pairs if pair[0] in vocabulary and pair[1] in vocabulary]
        merges += sorted(known, key=lambda pair: (vocabulary[pair[0]], vocabulary[pair[1]]))
    return merges
