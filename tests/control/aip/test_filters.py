from __future__ import annotations

import fnmatch
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sarto.control.aip import filters
from sarto.control.aip.filters import AllOf, AnyOf, Call, Comparison, Not
from sarto.errors import InvalidArgument
from sarto.system.globs import star_matches


def test_or_binds_tighter_than_and() -> None:
    tree = filters.parse("a=1 AND b=2 OR c=3")
    assert tree == AllOf(
        (Comparison("a", "=", "1", 1), AnyOf((Comparison("b", "=", "2", 9), Comparison("c", "=", "3", 16))))
    )


def test_terms_side_by_side_are_joined_by_and() -> None:
    assert filters.parse("a=1 -b:*") == AllOf((Comparison("a", "=", "1", 1), Not(Comparison("b", ":", "*", 6))))


def test_what_the_metadata_client_sends_is_read() -> None:
    tree = filters.parse('(schema_title="system.Run") AND in_context("projects/1/x")')
    assert tree == AllOf((Comparison("schema_title", "=", "system.Run", 2), Call("in_context", ("projects/1/x",), 33)))


def test_times_need_no_quotes_and_label_keys_may_have_them() -> None:
    tree = filters.parse('create_time>=2026-11-23T10:00:00Z labels."a key"="b \\"c\\""')
    assert tree == AllOf(
        (Comparison("create_time", ">=", "2026-11-23T10:00:00Z", 1), Comparison("labels.a key", "=", 'b "c"', 35))
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("state=", 'At character 7: expected a value after "="'),
        ("(a=b", 'At character 5: a ")" is missing'),
        ("state RUNNING", 'At character 7: expected a comparison after "state"'),
        ('a="b', "At character 3: a quoted text does not end"),
        ("a=b)", 'At character 4: unexpected ")"'),
        ("a=b AND", "At character 8: expected a field"),
        ("a=b OR NOT", "At character 11: expected a field"),
        ("(" * 60 + "a=b", "nested deeper"),
        ("a=b " * 2000, "longer than"),
        ("a=b " * 101, "At character 401: the filter has more than 100 terms"),
    ],
)
def test_a_bad_filter_says_at_which_character(text: str, words: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        filters.parse(text)
    assert caught.value.violations[0].field == "filter"
    assert words in caught.value.violations[0].description


@given(st.text(alphabet="ab.:=<>!()\"-* ANDORNT\\'", max_size=40))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        filters.parse(text)
    except InvalidArgument as error:
        assert error.violations[0].description.startswith("At character ")


def test_stars_match_any_text() -> None:
    node = Comparison("display_name", "=", "a*z", 1)
    assert filters.text_holds(node, "a.(z") and not filters.text_holds(node, "abc")
    assert filters.text_holds(Comparison("x", ":", "*", 1), "v") and not filters.text_holds(
        Comparison("x", ":", "*", 1), None
    )


def test_sixty_stars_against_a_text_they_nearly_fit_are_answered_at_once() -> None:
    node = Comparison("display_name", "=", "a*" * 60 + "b", 1)
    began = time.process_time()
    assert not filters.text_holds(node, "a" * 64)
    assert time.process_time() - began < 0.01


@given(st.text(alphabet="ab*", max_size=12), st.text(alphabet="ab", max_size=12))
def test_a_star_means_what_it_means_in_a_shell(pattern: str, text: str) -> None:
    assert star_matches(pattern, text) == fnmatch.fnmatchcase(text, pattern)
