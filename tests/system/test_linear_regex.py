"""Regular expressions of callers: the last match, and time linear in the text."""

from __future__ import annotations

import time

import pytest

from sarto.errors import DeadlineExceeded
from sarto.system.linear_regex import MOST_TEXT_BYTES, LinearPattern, PatternError


@pytest.mark.parametrize(
    ("pattern", "text", "last"),
    [
        ("<a>(.*?)</a>", "<a>1</a> then <a>2</a>", "2"),
        (r"\d+", "41 and 42", "42"),
        (r"(\d+)|x", "41 x", ""),
        ("<a>(.*?)</a>", "<a>1\n2</a>", None),
        ("(?s)<a>(.*?)</a>", "<a>1\n2</a>", "1\n2"),
        ("a*", "bä", ""),
        ("ä(.)", "äöäü", "ü"),
        ("(.)\ufffd", "x\ud800", None),
    ],
)
def test_the_group_of_the_last_match(pattern: str, text: str, last: str | None) -> None:
    assert LinearPattern(pattern).last(text) == last


def test_a_pattern_that_takes_python_for_ever_takes_no_time() -> None:
    began = time.monotonic()
    assert not LinearPattern("(x+x+)+y").is_in("x" * 100_000)
    assert time.monotonic() - began < 2


def test_so_many_matches_that_their_sum_is_quadratic_are_given_up() -> None:
    with pytest.raises(DeadlineExceeded, match="matches too often"):
        LinearPattern("x*y|x").last("x" * 200_000)


def test_a_text_over_the_limit_is_refused() -> None:
    with pytest.raises(DeadlineExceeded, match="256 KiB"):
        LinearPattern("x").is_in("x" * (MOST_TEXT_BYTES + 1))


@pytest.mark.parametrize("pattern", ["(a", "(?=a)", r"(a)\1", "a{2000}", "(a{50}){50}", "x" * 10_001, "\ud800"])
def test_other_patterns_are_refused_with_a_reason(pattern: str) -> None:
    with pytest.raises(PatternError, match=r".{5}"):
        LinearPattern(pattern)
