"""Whether two bases have the same tokens, by their files: the condition for distillation at token level."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

SHOWN = 40


def difference(teacher: Path, student: Path) -> str:
    """The reason why tokens of one base are not those of the other; empty if they are. Ids that only one of them has
    are ignored: outputs are cut to the common width."""
    theirs, ours = _tokens(teacher), _tokens(student)
    for number in sorted(theirs.keys() & ours.keys()):
        if theirs[number] != ours[number]:
            shown = f"{_shown(theirs[number])} in the teacher and {_shown(ours[number])} in the student"
            return f"their vocabularies differ: token {number} is {shown}"
    if len(theirs.keys() ^ ours.keys()) > len(theirs.keys() & ours.keys()):
        return f"their vocabularies differ: the teacher has {len(theirs):,} tokens and the student {len(ours):,}"
    if _template(teacher) != _template(student):
        return "their chat templates differ, so the teacher would read prompts in a form that it does not know"
    return ""


def _tokens(folder: Path) -> dict[int, str]:
    """Every token by its id."""
    description = _read(folder / "tokenizer.json")
    vocabulary = description.get("model", {}).get("vocab", {})
    if isinstance(vocabulary, list):  # a unigram model: (token, score) in the order of the ids
        vocabulary = {pair[0]: number for number, pair in enumerate(vocabulary)}
    tokens = {number: token for token, number in vocabulary.items()}
    return tokens | {each["id"]: each["content"] for each in description.get("added_tokens", ())}


def _template(folder: Path) -> str:
    path = folder / "chat_template.jinja"
    if path.exists():
        return path.read_text(encoding="utf-8")
    return str(_read(folder / "tokenizer_config.json").get("chat_template", ""))


def _read(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content


def _shown(token: str) -> str:
    return json.dumps(token[:SHOWN], ensure_ascii=False)
