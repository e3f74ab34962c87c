"""Detectors for texts: secrets and addresses that should not be in training data, scripts and languages.

They match patterns, so they have false negatives and false positives. Findings have line and kind, never the whole
text.
"""

from __future__ import annotations

import re
from typing import Any

from sarto.conversations.examples import Example

SECRETS: tuple[tuple[str, tuple[bytes, ...], re.Pattern[bytes]], ...] = (
    ("private key", (b"-----BEGIN",), re.compile(rb"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----")),
    ("AWS access key", (b"AKIA",), re.compile(rb"\bAKIA[0-9A-Z]{16}\b")),
    ("Google API key", (b"AIza",), re.compile(rb"\bAIza[0-9A-Za-z_-]{35}")),
    (
        "GitHub token",
        (b"ghp_", b"gho_", b"ghu_", b"ghs_", b"ghr_", b"github_pat_"),
        re.compile(rb"\b(?:gh[pousr]_[0-9A-Za-z]{36}|github_pat_[0-9A-Za-z_]{22,})"),
    ),
    ("Slack token", (b"xox",), re.compile(rb"\bxox[abprs]-[0-9A-Za-z-]{10,}")),
    ("API key", (b"sk-",), re.compile(rb"\bsk-[0-9A-Za-z_-]{20,}")),
    ("JSON web token", (b"eyJ",), re.compile(rb"\beyJ[0-9A-Za-z_-]{8,}\.eyJ[0-9A-Za-z_-]{8,}\.[0-9A-Za-z_-]{8,}")),
    (
        "password",
        (b"assword", b"asswd"),
        re.compile(rb"\b[Pp]assw(?:or)?d\b[\"\\ ]{0,3}[:=][\"\\ ]{0,3}[^\s\"\\,;]{6,}"),
    ),
    (
        "e-mail address",
        (b"@",),
        re.compile(rb"[0-9A-Za-z._%+-]{1,64}@[0-9A-Za-z-]{1,63}(?:\.[0-9A-Za-z-]{1,63}){0,6}\.[A-Za-z]{2,24}\b"),
    ),
)
BEFORE, AFTER = 70, 600
"""Most characters of a secret before and after the characters that identify it."""
_SCRIPTS: tuple[tuple[str, int, int], ...] = (
    ("Greek", 0x0370, 0x03FF),
    ("Cyrillic", 0x0400, 0x052F),
    ("Armenian", 0x0530, 0x058F),
    ("Hebrew", 0x0590, 0x05FF),
    ("Arabic", 0x0600, 0x077F),
    ("Devanagari", 0x0900, 0x097F),
    ("Bengali", 0x0980, 0x09FF),
    ("Tamil", 0x0B80, 0x0BFF),
    ("Thai", 0x0E00, 0x0E7F),
    ("Georgian", 0x10A0, 0x10FF),
    ("Japanese", 0x3040, 0x30FF),
    ("Han", 0x3400, 0x9FFF),
    ("Hangul", 0xAC00, 0xD7AF),
)
_COMMON: dict[str, frozenset[str]] = {
    "English": frozenset("the and of to is in that it for was with are this you not have be on".split()),
    "German": frozenset("der die und das ist nicht ein eine zu den mit sich auf für von dem sie auch".split()),
    "French": frozenset("le la les et des est une un que pas pour dans qui ce vous sur avec du".split()),
    "Spanish": frozenset("el la los las que y en un una es por con para del se no está más".split()),
    "Italian": frozenset("il che di e la per un una non sono è con del le gli nel questo ma".split()),
    "Portuguese": frozenset("o que e do da em um uma não para com os as é por mais dos se".split()),
    "Dutch": frozenset("de het een en van is dat niet op te zijn met voor er aan die ook".split()),
}
_OTHER_LETTERS = re.compile("[\u0370-\u1dff\u3040-\ud7af]")
_WORD = re.compile(r"[^\W\d_]+")


def find_secrets(data: bytes, first_line: int) -> list[list[Any]]:
    """(line, kind, first characters) of each probable secret or e-mail address."""
    secrets: list[list[Any]] = []
    for kind, hints, pattern in SECRETS:
        for hint in hints:
            line, counted, end = first_line, 0, 0
            at = data.find(hint)
            while at >= 0:
                match = pattern.search(data, max(end, at - BEFORE), min(len(data), at + AFTER))
                if match is not None and match.start() <= at < match.end():
                    line += data.count(b"\n", counted, at)
                    counted, end = at, match.end()
                    secrets.append([line, kind, match[0][:3].decode("ascii", "replace") + "…"])
                at = data.find(hint, max(at + 1, end))
    return sorted(secrets)


def call_faults(example: Example) -> set[str]:
    """Faults of the calls in a conversation: `undeclared` functions, and `arguments` that do not match the schema."""
    declared = {tool["name"]: tool["parameters"] for tool in example.tools}
    faults = set()
    for call in (call for turn in example.turns for call in turn.calls):
        if call.name not in declared:
            faults.add("undeclared")
        elif not _fits(call.arguments, declared[call.name]):
            faults.add("arguments")
    return faults


def _fits(arguments: dict[str, Any], schema: dict[str, Any]) -> bool:
    """Whether all required properties are present, and none that a closed list of properties lacks."""
    required, properties = schema.get("required", []), schema.get("properties")
    if isinstance(required, list) and not arguments.keys() >= {name for name in required if isinstance(name, str)}:
        return False
    is_open = schema.get("additionalProperties", False) is not False or "patternProperties" in schema
    return not isinstance(properties, dict) or is_open or arguments.keys() <= properties.keys()


def script_of(text: str) -> str:
    """The script of at least a third of the first characters, else `Latin`."""
    if text.isascii():
        return "Latin"
    head = text[:200]
    others = _OTHER_LETTERS.findall(head)
    if 3 * len(others) < len(head):
        return "Latin"
    names = [_script(ord(character)) for character in others]
    return "Japanese" if "Japanese" in names else max(set(names), key=names.count)


def _script(point: int) -> str:
    return next((name for name, first, last in _SCRIPTS if first <= point <= last), "other")


def guess_language(text: str) -> str:
    """The language with the most frequent small words; `unclear` for short or mixed text."""
    words = [word.lower() for word in _WORD.findall(text[:600])]
    counts = {name: sum(word in common for word in words) for name, common in _COMMON.items()}
    best = max(counts, key=lambda name: counts[name])
    others = max(count for name, count in counts.items() if name != best)
    return best if counts[best] >= 3 and counts[best] > others else "unclear"
