"""Shared by all tests: the folders that `make test` runs after the fast tests carry the `slow` mark."""

from __future__ import annotations

from pathlib import Path

import pytest

SLOW_FOLDERS = ("conformance", "crash")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(here) and item.path.relative_to(here).parts[0] in SLOW_FOLDERS:
            item.add_marker(pytest.mark.slow)
