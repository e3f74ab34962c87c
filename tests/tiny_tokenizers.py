"""Small tokenizers of the kinds that the real families have: their splitting of words, their merges, their bytes."""

from __future__ import annotations

from collections.abc import Callable

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from tests.tiny import SPECIALS

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
TEXTS = [
    "You are a helpful assistant. It's the 12345th of them, isn't it?\n\n  The system THEY'LL see: x = 3.14159;\n",
    "user and assistant: the answer is 2024, then 99 and 1000000.\t  Über café naïve ñandú — “quoted” text…\r\n",
]


def by_pattern(pattern: str, *, ignore_merges: bool = False) -> Tokenizer:
    """Byte-level BPE that splits words by a pattern."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    words = pre_tokenizers.Split(Regex(pattern), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=340, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    return tokenizer


def with_specials(tokenizer: Tokenizer, *, first: str | None = None) -> Tokenizer:
    """Ours at the end, one added token that is not special, and `first` before every text."""
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIALS])
    tokenizer.add_tokens([AddedToken("<think>", special=False, normalized=False)])
    if first is not None:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=[first, "$A"], special_tokens=[(first, tokenizer.token_to_id(first))]
        )
    return tokenizer


def qwen2() -> Tokenizer:
    tokenizer = by_pattern(QWEN2)
    tokenizer.normalizer = normalizers.NFC()
    return with_specials(tokenizer)


def llama3() -> Tokenizer:
    return with_specials(by_pattern(LLAMA3, ignore_merges=True), first=SPECIALS[1])


def gemma3() -> Tokenizer:
    """Pieces merged in the order of their ids, in every way they can be; bytes for what is no piece."""
    pieces = "▁t he ▁the er in an ▁a ▁an ▁and ▁s en es st ▁sy ▁syst ▁system us ▁us ▁user is ▁is ou ▁you ▁▁ ▁▁▁ ll ▁he"
    texts = ["<pad>", "<eos>", "<bos>", "<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "\n\n", *pieces.split()]
    characters = sorted(set("".join(TEXTS).replace(" ", "▁") + "'") - {"Ü", "…"})
    vocabulary = {text: number for number, text in enumerate(dict.fromkeys([*texts, *characters]))}
    merges = [
        (text[:cut], text[cut:])
        for text in ["\n\n", *pieces.split()]
        for cut in range(1, len(text))
        if text[:cut] in vocabulary and text[cut:] in vocabulary
    ]
    model = models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in texts[:4]])
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in ("\n\n", "▁▁", "▁▁▁")])
    return with_specials(tokenizer, first=SPECIALS[1])


TOKENIZERS: dict[str, Callable[[], Tokenizer]] = {"qwen2": qwen2, "qwen3": qwen2, "llama": llama3, "gemma3": gemma3}
