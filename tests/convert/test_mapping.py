"""A mapping is written as TOML and JSON and read back the same; what is wrong in one is named."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sarto.conversations.convert.mapping import ColumnMapping, Filter, parse_mapping, to_json, to_toml
from sarto.errors import InvalidArgument

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
FILTERS = st.builds(
    Filter, TEXTS, equals=st.none() | TEXTS, non_empty=st.just(True), min_chars=st.integers(0, 9),
    max_chars=st.none() | st.integers(0, 9),
)  # fmt: skip
MAPPINGS = st.builds(
    ColumnMapping,
    st.just("columns"),
    st.fixed_dictionaries({"input": st.lists(TEXTS, min_size=1, max_size=3).map(tuple), "output": st.tuples(TEXTS)}),
    system_text=st.text(st.characters(exclude_categories=["Cs"])),
    filters=st.lists(FILTERS, max_size=2).map(tuple),
    validation_share=st.sampled_from([0.0, 0.1, 0.25]),
    seed=st.integers(0, 2**63 - 1),
    deduplicate=st.booleans(),
    delimiter=st.sampled_from(["", ";", "\t"]),
    encoding=st.sampled_from(["utf-8", "cp1252"]),
)


@given(MAPPINGS)
@settings(max_examples=60, deadline=None)
def test_a_mapping_is_read_as_it_was_written(mapping: ColumnMapping) -> None:
    assert parse_mapping(to_toml(mapping).encode(), "map.toml") == mapping
    assert parse_mapping(json.dumps(to_json(mapping)).encode(), "map.json") == mapping


def test_a_mapping_by_hand_is_short() -> None:
    text = b'shape = "columns"\n[columns]\ninput = ["title", "body"]\noutput = "label"\n'
    assert parse_mapping(text, "map.toml") == ColumnMapping(
        "columns", {"input": ("title", "body"), "output": ("label",)}
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x", "map.toml: it is neither JSON nor TOML"),
        ("", "shape: missing"),
        ('shape = "rows"', "shape: one of gemini, messages"),
        ('shape = "columns"', "columns.input: the shape columns needs it"),
        ('shape = "gemini"\ncolor = 1', "color: an unknown field"),
        ('shape = "gemini"\nversion = 2', "version: 1 is wanted"),
        ('shape = "gemini"\nseed = "x"', "seed: a whole number is wanted"),
        ('shape = "gemini"\nseed = true', "seed: a whole number is wanted"),
        ('shape = "gemini"\nvalidation_share = 1', "validation_share: from 0 to below 1"),
        ('shape = "gemini"\nvalidation_share = nan', "validation_share: from 0 to below 1"),
        ('shape = "gemini"\n[columns]\ninput = "x"', "columns.input: the shape gemini has no columns"),
        ('shape = "messages"\n[columns]\nmessages = ["x", "y"]', "columns.messages: one column is wanted"),
        ('shape = "messages"\n[columns]\nmessages = 3', "columns.messages: the name of a column"),
        ('shape = "gemini"\n[[filters]]\ncolumn = "x"', r"filters\[0\]: one of equals"),
        ('shape = "gemini"\n[[filters]]\ncolumn = "x"\nmin_chars = "3"', r"filters\[0\].min_chars: a whole number"),
        ('shape = "gemini"\nencoding = "utf-7"', "encoding: one of utf-8"),
        ('shape = "gemini"\ndelimiter = ";;"', "delimiter: one character"),
    ],
)
def test_a_fault_is_named_with_its_field(text: str, words: str) -> None:
    with pytest.raises(InvalidArgument, match=words):
        parse_mapping(text.encode(), "map.toml")


def test_what_was_made_with_a_mapping_is_no_part_of_it() -> None:
    mapping = ColumnMapping("gemini", {})
    stored = {**to_json(mapping), "made": {"sources": []}}
    assert parse_mapping(json.dumps(stored).encode(), "x") == replace(mapping)
