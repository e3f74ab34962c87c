"""The mask proof of one row: its JSON, the tokens that training uses, the prompt that serving would send, and whether
the two agree. One JSON object; the CLI prints it in colour."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sarto.conversations.examples import DataFormat, Example, RowFault, parse_examples
from sarto.engine.dataset.blocks import read_line
from sarto.engine.dataset.prepare import DatasetLimits
from sarto.engine.dataset.tokenise import PROMPTS, sample
from sarto.engine.rendering.render import Rendered, pack_row, render, render_prompt, render_question, replies
from sarto.engine.rendering.tokenizer import ChatTokenizer
from sarto.errors import NotFound

SHOWN_RAW = 20_000


def show_row(
    path: Path,
    line: int,
    tokenizer: ChatTokenizer,
    *,
    name: str = "",
    data_format: DataFormat = "auto",
    limits: DatasetLimits = DatasetLimits(),
) -> dict[str, Any]:
    """The proof for the row at a 1-based line; for a pair, that of both completions, the preferred one first.

    An unusable row has its `fault` instead of tokens. `name` is the file's name in messages.

    Raises NotFound when the file has no such line."""
    raw = read_line(path, line, limits.max_line_bytes)
    if raw is None:
        raise NotFound(f"{name or path.name} has no line {line}, or the line is too long to read.")
    proof: dict[str, Any] = {"line": line, "raw": raw.decode("utf-8", "replace")[:SHOWN_RAW]}
    try:
        examples = parse_examples(raw, line, data_format=data_format)
        if data_format in PROMPTS:
            rendered = [[pack_row(row, tokenizer).rendered() for row in render_question(examples[0], tokenizer)]]
        else:
            rendered = [render(example, tokenizer) for example in examples]
    except RowFault as fault:
        return proof | {"fault": fault.to_json()}
    training = [_training(row, tokenizer) for rows in rendered for row in rows]
    serving = [
        prompt
        for example, rows in zip(examples, rendered, strict=True)
        for prompt in _serving(example, rows, tokenizer)
    ]
    shown = sample(*examples)
    del shown["line"]
    return proof | {
        "format": examples[0].format,
        **shown,
        "training": training,
        "serving": serving,
        "isSame": all(prompt["isSame"] for prompt in serving),
    }


def _training(row: Rendered, tokenizer: ChatTokenizer) -> dict[str, Any]:
    """The text, and each token with its part of it; a token inside a character has none."""
    stream = tokenizer.stream(skip_special_tokens=False)
    tokens = [
        {"id": number, "text": stream.push(number), "learned": learned}
        for number, learned in zip(row.tokens, row.loss_mask, strict=True)
    ]
    return {
        "text": tokenizer.decode(row.tokens, skip_special_tokens=False),
        "tokens": tokens,
        "tokenCount": len(row.tokens),
        "learnedCount": sum(row.loss_mask),
    }


def _serving(example: Example, rows: list[Rendered], tokenizer: ChatTokenizer) -> list[dict[str, Any]]:
    """For each reply the prompt that serving sends, and whether training has the same tokens before it."""
    starts = [
        (row.tokens, index)
        for row in rows
        for index, learned in enumerate(row.loss_mask)
        if learned and not (index and row.loss_mask[index - 1])
    ]
    prompts = []
    if not starts:  # a prompt: no reply is learned
        tokens = rows[0].tokens
        return [{"text": tokenizer.decode(tokens, skip_special_tokens=False), "tokens": tokens, "isSame": True}]
    for (conversation, turn), (tokens, start) in zip(replies(example), starts, strict=True):
        prompt = render_prompt(conversation, tokenizer, thinking=tokenizer.template.thinks(turn))
        text = tokenizer.decode(prompt, skip_special_tokens=False)
        prompts.append({"text": text, "tokens": prompt, "isSame": tokens[:start] == prompt})
    return prompts
