"""A column by its name, or a value inside a column by a JSON path such as `meta.lang` or `messages[0].content`."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import orjson

from sarto.errors import InvalidArgument

_STEP = re.compile(r"\.?([^.\[\]]+)|\[(-?\d{1,6})\]")
Place = Callable[[Mapping[str, Any]], Any]
"""The value of a row at a place; None where there is none."""


def place(name: str) -> Place:
    """The reader of a column; of a path, where no column has the name. Raises InvalidArgument for an empty name."""
    if not name:
        raise InvalidArgument("A column's name, or a JSON path such as meta.lang or messages[0].content, is empty.")
    steps = _steps(name)

    def read(row: Mapping[str, Any]) -> Any:
        if name in row:
            return row[name]
        value: Any = row if len(steps) > 1 else None
        for step in steps if len(steps) > 1 else ():
            value = _inside(value, step)
        return value

    return read


def column_of(name: str, columns: Mapping[str, Any] | list[str]) -> str:
    """The column that a name or a path is read from."""
    return name if name in columns else str(_steps(name)[0])


def _steps(name: str) -> list[str | int]:
    steps: list[str | int] = []
    at = 0
    while at < len(name):
        found = _STEP.match(name, at)
        if found is None:
            break
        steps.append(found[1] if found[2] is None else int(found[2]))
        at = found.end()
    if not steps or at < len(name) or isinstance(steps[0], int):
        return [name]  # a column's name may hold anything
    return steps


def _inside(value: Any, step: str | int) -> Any:
    if isinstance(value, str):
        try:
            value = orjson.loads(value)  # a table's cell that holds JSON
        except orjson.JSONDecodeError:
            return None
    if isinstance(step, int):
        return value[step] if isinstance(value, list) and -len(value) <= step < len(value) else None
    return value.get(step) if isinstance(value, dict) else None
