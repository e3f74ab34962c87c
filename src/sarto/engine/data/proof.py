"""The mask proof of one row: what the file says, what training sees token by token, what serving would send, and
whether the two agree. One JSON object; the CLI prints it in colour and the console draws it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sarto.engine.data.blocks import read_line
from sarto.engine.data.prepare import Limits
from sarto.engine.data.render import Rendered, render, render_prompt, replies
from sarto.engine.data.rows import sample
from sarto.engine.data.tokenizer import ChatTokenizer
from sarto.errors import NotFound
from sarto.schema.examples import DataFormat, Example, RowFault, parse_line

SHOWN_RAW = 20_000


def show_row(
    path: Path,
    line: int,
    tokenizer: ChatTokenizer,
    *,
    name: str = "",
    data_format: DataFormat = "auto",
    limits: Limits = Limits(),
) -> dict[str, Any]:
    """The proof for the row at a 1-based line. A row that cannot be used has its `fault` instead of tokens.
    `name` is what messages call the file.

    Raises NotFound when the file has no such line."""
    raw = read_line(path, line, limits.max_line_bytes)
    if raw is None:
        raise NotFound(f"{name or path.name} has no line {line}, or the line is too long to read")
    proof: dict[str, Any] = {"line": line, "raw": raw.decode("utf-8", "replace")[:SHOWN_RAW]}
    try:
        example = parse_line(raw, line, data_format=data_format)
        rows = render(example, tokenizer)
    except RowFault as fault:
        return proof | {"fault": fault.to_json()}
    training = [_training(row, tokenizer) for row in rows]
    serving = _serving(example, rows, tokenizer)
    return proof | {
        "format": example.format,
        "contents": sample(example)["contents"],
        "training": training,
        "serving": serving,
        "isSame": all(prompt["isSame"] for prompt in serving),
    }


def _training(row: Rendered, tokenizer: ChatTokenizer) -> dict[str, Any]:
    """Text, and each token with its own share of it; a token inside a character has none."""
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
    """For each reply the prompt that serving sends, and whether training has the same tokens in front of it."""
    starts = [
        (row.tokens, index)
        for row in rows
        for index, learned in enumerate(row.loss_mask)
        if learned and not (index and row.loss_mask[index - 1])
    ]
    found = []
    for (conversation, turn), (tokens, start) in zip(replies(example), starts, strict=True):
        prompt = render_prompt(conversation, tokenizer, thinking=tokenizer.template.thinks(turn))
        text = tokenizer.decode(prompt, skip_special_tokens=False)
        found.append({"text": text, "tokens": prompt, "isSame": tokens[:start] == prompt})
    return found
