"""Counts in messages, with the singular or plural noun."""

from __future__ import annotations


def counted(count: int, one: str, many: str) -> str:
    """`1 row is worse`, `1,200 rows are worse`: the count with the words for one or for many."""
    return f"{count:,} {one if count == 1 else many}"


def row_count(count: int) -> str:
    return counted(count, "row", "rows")
