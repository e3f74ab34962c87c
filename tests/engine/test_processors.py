"""The engine is right under every instruction set that this machine has."""

from __future__ import annotations

import platform

import pytest

from tests.processors import CELLS, Cell, run

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(platform.machine() != "x86_64", reason="the limits are those of x86-64"),
]


@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell.name)
def test_the_engine_is_right_under_an_instruction_set(cell: Cell) -> None:
    outcome = run(cell)
    if outcome.result == "cannot run":
        pytest.skip(outcome.words)
    assert outcome.result == "passed", outcome.words
