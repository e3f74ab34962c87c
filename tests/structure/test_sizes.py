"""A module ends at 600 lines, a function at 60, and a module says what it is for."""

from __future__ import annotations

import ast

import pytest

from tests.structure.sources import modules, tree

MODULE_LINES, FUNCTION_LINES = 600, 60
MIGRATIONS = "sarto.storage.database.migrations.versions."
"""Lists of tables, made by a program and never changed again: only their docstring is looked at."""


@pytest.mark.parametrize("name", modules())
def test_module_is_small_and_says_what_it_is_for(name: str) -> None:
    path = modules()[name]
    assert ast.get_docstring(tree(path)), f"{name} opens without a word about what it does"
    if name.startswith(MIGRATIONS):
        return
    assert path.read_text(encoding="utf-8").count("\n") <= MODULE_LINES
    for node in ast.walk(tree(path)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            assert node.end_lineno is not None
            lines = node.end_lineno - node.lineno + 1
            assert lines <= FUNCTION_LINES, f"{name}.{node.name} has {lines} lines"
