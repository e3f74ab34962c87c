"""Pages of a list: all rows once, in order, however they are cut, also while rows come and go."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa

from sarto.control.aip import pages
from sarto.control.context import Control
from sarto.errors import InvalidArgument
from sarto.storage.database.tables import operation

TABLE = operation


def put(control: Control, identifier: str, location: str = "here", project: str = "1") -> None:
    values = {"project": project, "id": identifier, "location": location, "parent": "", "resource": "{}"}
    with control.database.transaction() as connection:
        connection.execute(TABLE.insert().values(**values, done=True, create_time=0.0))


def read(control: Control, size: int, token: str, ascending: bool, location: str = "here") -> tuple[list[str], str]:
    query = sa.select(TABLE.c.id).where(pages.within(TABLE, "1", location))
    with control.database.reading() as connection:
        wanted = pages.requested(size, token, "things", location)
        rows, more = wanted.read(connection, query, TABLE.c.id, ascending=ascending)
    return [row.id for row in rows], more


@pytest.mark.parametrize("ascending", [True, False])
@pytest.mark.parametrize("size", [1, 2, 3, 6, 7, 100])
def test_pages_of_any_size_have_all_rows_once_and_the_last_has_no_token(
    control: Control, size: int, ascending: bool
) -> None:
    for number in range(6):
        put(control, f"{number}", "here" if number < 5 else "there")
    put(control, "9", project="2")
    found, token = read(control, size, "", ascending, "-")
    sizes = [len(found)]
    while token:
        rows, token = read(control, size, token, ascending, "-")
        found += rows
        sizes.append(len(rows))
    assert found == sorted(map(str, range(6)), reverse=not ascending)
    assert max(sizes) <= size and 0 not in sizes


def test_a_row_that_is_deleted_or_comes_between_pages_moves_no_other(control: Control) -> None:
    for number in (1, 3, 5, 7):
        put(control, f"{number}")
    first, token = read(control, 2, "", ascending=True)
    with control.database.transaction() as connection:
        connection.execute(TABLE.delete().where(TABLE.c.id == "3"))
    put(control, "2")
    put(control, "6")
    assert (first, read(control, 9, token, ascending=True)) == (["1", "3"], (["5", "6", "7"], ""))


def test_a_token_is_good_for_its_list_alone(control: Control) -> None:
    for number in range(3):
        put(control, f"{number}")
    _, token = read(control, 1, "", ascending=True)
    for wrong in (token[:-1], token + "A", "nonsense", "0" + token[1:]):
        with pytest.raises(InvalidArgument, match="page_token"):
            pages.requested(1, wrong, "things", "here")
    with pytest.raises(InvalidArgument, match="page_token"):
        pages.requested(1, token, "things", "there")
    assert pages.requested(1, token, "things", "here").key == "0"


def test_a_list_that_is_filtered_in_memory_has_pages_too() -> None:
    values = {f"{number:04}": {"number": number} for number in range(1000)}
    calls: list[int] = []

    def after(key: str, limit: int) -> list[tuple[str, dict[str, Any]]]:
        calls.append(limit)
        return sorted((name, value) for name, value in values.items() if name > key)[:limit]

    def read_all(size: int) -> list[int]:
        found, token = list[int](), ""
        while True:
            rows, token = pages.filtered(after, lambda one: one["number"] % 7 == 0, pages.requested(size, token, "x"))
            found += [row["number"] for row in rows]
            if not token:
                return found

    assert read_all(10) == read_all(1000) == list(range(0, 1000, 7))
    assert set(calls) == {pages.SCAN}


@pytest.mark.parametrize(("size", "used"), [(0, 100), (1, 1), (1000, 1000), (5000, 1000)])
def test_the_size_of_a_page_has_a_default_and_a_bound(size: int, used: int) -> None:
    assert pages.requested(size, "", "x").size == used


def test_a_negative_size_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="-1 is negative"):
        pages.requested(-1, "", "x")
