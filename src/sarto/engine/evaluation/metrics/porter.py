"""Porter's suffix stripping for English, with the extensions of the usual ROUGE programs.

Works on one lower-case word. Tests compare it with the reference stemmer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

Condition = Callable[[str], bool]
Rule = tuple[str, str, Condition]

IRREGULAR = {
    "skies": "sky", "sky": "sky", "dying": "die", "lying": "lie", "tying": "tie", "news": "news",
    "innings": "inning", "inning": "inning", "outings": "outing", "outing": "outing",
    "cannings": "canning", "canning": "canning", "howe": "howe",
    "proceed": "proceed", "exceed": "exceed", "succeed": "succeed",
}  # fmt: skip


@lru_cache(maxsize=50_000)
def stem(word: str) -> str:
    """The stem of a lower-case word. Words of one or two characters are unchanged."""
    if word in IRREGULAR:
        return IRREGULAR[word]
    if len(word) <= 2:
        return word
    word = _past_and_continuous(_plural(word))
    if word.endswith("y") and len(word) > 2 and _shape(word[:-1])[-1] == "c":
        word = word[:-1] + "i"
    word = _double_suffix(word)
    word = _first_match(word, STEP_3)
    word = _first_match(word, STEP_4)
    return _final_letters(word)


def _shape(word: str) -> str:
    """One letter per character: `c` for a consonant, `v` for a vowel; `y` is a vowel after a consonant."""
    shape = ""
    for letter in word:
        if letter == "y":
            shape += "v" if shape.endswith("c") else "c"
        else:
            shape += "v" if letter in "aeiou" else "c"
    return shape


def _measure(word: str) -> int:
    """Number of vowel runs that precede a consonant run: Porter's m."""
    return _shape(word).count("vc")


def _is_long(word: str) -> bool:
    return _measure(word) > 0


def _is_longer(word: str) -> bool:
    return _measure(word) > 1


def _always(_word: str) -> bool:
    return True


def _is_short_syllable(word: str) -> bool:
    """Whether a word ends in consonant, vowel, consonant (not w, x, y), or is only vowel and consonant."""
    shape = _shape(word)
    return shape == "vc" or (shape.endswith("cvc") and word[-1] not in "wxy")


def _first_match(word: str, rules: Sequence[Rule]) -> str:
    """Apply the first rule with a matching suffix; if its condition fails, no later rule is tried."""
    for suffix, replacement, condition in rules:
        if word.endswith(suffix):
            rest = word[: len(word) - len(suffix)]
            return rest + replacement if condition(rest) else word
    return word


def _plural(word: str) -> str:
    if word.endswith("ies") and len(word) == 4:
        return word[:-1]
    return _first_match(word, STEP_1A)


def _past_and_continuous(word: str) -> str:
    if word.endswith("ied"):
        return word[:-1] if len(word) == 4 else word[:-2]
    if word.endswith("eed"):
        return word[:-1] if _is_long(word[:-3]) else word
    for suffix in ("ed", "ing"):
        rest = word[: -len(suffix)]
        if word.endswith(suffix) and "v" in _shape(rest):
            return _mend(rest)
    return word


def _mend(rest: str) -> str:
    """Restore the letter that was removed with -ed or -ing, or remove the doubled one."""
    if rest.endswith(("at", "bl", "iz")):
        return rest + "e"
    if len(rest) > 1 and rest[-1] == rest[-2] and _shape(rest)[-1] == "c":
        return rest if rest[-1] in "lsz" else rest[:-1]
    return rest + "e" if _measure(rest) == 1 and _is_short_syllable(rest) else rest


def _double_suffix(word: str) -> str:
    if word.endswith("alli") and _is_long(word[:-4]):
        return _double_suffix(word[:-2])
    if word.endswith("logi"):  # measured with the l, so that "biologi" counts as long
        return word[:-1] if _is_long(word[:-3]) else word
    return _first_match(word, STEP_2)


def _final_letters(word: str) -> str:
    if word.endswith("e"):
        rest = word[:-1]
        if _is_longer(rest) or (_measure(rest) == 1 and not _is_short_syllable(rest)):
            word = rest
    if word.endswith("ll") and _is_longer(word[:-1]):
        return word[:-1]
    return word


def _rules(text: str, condition: Condition) -> list[Rule]:
    """Parse `from>to` pairs, in the order in which they are tried."""
    return [(*pair.split(">"), condition) for pair in text.split()]  # type: ignore[misc]


STEP_1A = _rules("sses>ss ies>i ss>ss s>", _always)
STEP_2 = _rules(
    "ational>ate tional>tion enci>ence anci>ance izer>ize bli>ble alli>al entli>ent eli>e ousli>ous ization>ize "
    "ation>ate ator>ate alism>al iveness>ive fulness>ful ousness>ous aliti>al iviti>ive biliti>ble fulli>ful",
    _is_long,
)
STEP_3 = _rules("icate>ic ative> alize>al iciti>ic ical>ic ful> ness>", _is_long)
STEP_4 = [
    *_rules("al> ance> ence> er> ic> able> ible> ant> ement> ment> ent>", _is_longer),
    ("ion", "", lambda rest: _is_longer(rest) and rest[-1] in "st"),
    *_rules("ou> ism> ate> iti> ous> ive> ize>", _is_longer),
]
