"""Cheap looks at texts: secrets and addresses that should not be in training data, scripts and languages.

Finds by pattern, so it can miss and can be wrong; what it finds is named by line and kind, never shown whole.
"""

from __future__ import annotations

import re
from typing import Any

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
"""How far around its telling characters a secret may reach."""
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
    """(line, kind, first characters) of what looks like a secret or an e-mail address."""
    found: list[list[Any]] = []
    for kind, hints, pattern in SECRETS:
        for hint in hints:
            line, counted, end = first_line, 0, 0
            at = data.find(hint)
            while at >= 0:
                match = pattern.search(data, max(end, at - BEFORE), min(len(data), at + AFTER))
                if match is not None and match.start() <= at < match.end():
                    line += data.count(b"\n", counted, at)
                    counted, end = at, match.end()
                    found.append([line, kind, match[0][:3].decode("ascii", "replace") + "…"])
                at = data.find(hint, max(at + 1, end))
    return sorted(found)


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
    """By the most frequent small words; `unclear` for short or mixed text."""
    words = [word.lower() for word in _WORD.findall(text[:600])]
    counts = {name: sum(word in common for word in words) for name, common in _COMMON.items()}
    best = max(counts, key=lambda name: counts[name])
    others = max(count for name, count in counts.items() if name != best)
    return best if counts[best] >= 3 and counts[best] > others else "unclear"
