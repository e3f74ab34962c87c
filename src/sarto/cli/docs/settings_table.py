"""The table of settings in docs/operations.md, from the fields of `Settings` and `Limits` and their docstrings."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
from collections.abc import Iterator

from sarto.configuration import Limits
from sarto.settings import Settings

BEGIN, END = "<!-- settings: written by make docs -->\n", "<!-- end of settings -->\n"
HEAD = "| Setting | Environment | Default | Meaning |\n|---|---|---|---|\n"
UNITS = {"TiB": 1 << 40, "GiB": 1 << 30, "MiB": 1 << 20}


def with_table(page: str) -> str:
    """The page with its table, between the two marks, written anew."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError("docs/operations.md lacks the marks around its table of settings")
    rows = (f"| `{name}` | `SARTO_{name.upper()}` | {default} | {text} |\n" for name, default, text in _rows())
    return "".join([before, BEGIN, "\n", HEAD, *rows, "\n", END, after])


def _rows() -> Iterator[tuple[str, str, str]]:
    """(name, default, meaning) of each setting, those of `Limits` in the place of the field that holds them."""
    texts, texts_of_limits = _docstrings(Settings), _docstrings(Limits)
    for name, field in Settings.model_fields.items():
        if name == "limits":
            for one in dataclasses.fields(Limits):
                yield one.name, *_cells(one.name, one.default, texts_of_limits[one.name])
        else:
            yield name, *_cells(name, field.get_default(call_default_factory=True), texts[name])


def _docstrings(kind: type) -> dict[str, str]:
    """The text below each field of a class."""
    body = ast.parse(inspect.getsource(kind)).body[0]
    assert isinstance(body, ast.ClassDef)
    texts = {}
    for field, text in zip(body.body, body.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
            assert isinstance(field.target, ast.Name)
            texts[field.target.id] = inspect.cleandoc(str(text.value.value)).replace("\n", " ")
    return texts


def _cells(name: str, default: object, text: str) -> tuple[str, str]:
    if match := re.fullmatch(r"(.*) Default: (.*)\.", text):
        return match[2], match[1]
    return _shown(name, default), text


def _shown(name: str, default: object) -> str:
    if isinstance(default, bool):
        return f"`{str(default).lower()}`"
    if isinstance(default, int | float):
        size = f" ({_size(int(default))})" if name.endswith("_bytes") and default else ""
        return f"`{default:g}`{size}" if isinstance(default, float) else f"`{default}`{size}"
    return f"`{default}`" if isinstance(default, str) and default else "none"


def _size(size_bytes: int) -> str:
    unit = next(unit for unit, factor in UNITS.items() if size_bytes % factor == 0)
    return f"{size_bytes // UNITS[unit]} {unit}"
