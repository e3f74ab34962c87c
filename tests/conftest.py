"""Shared by all tests: the folders that `make test` runs after the fast tests carry the `slow` mark."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.leftovers import Leftovers

if os.geteuid() == 0:  # as in a container; the service refuses to run as root unless it is told
    os.environ["SARTO_ALLOW_ROOT"] = "true"
SLOW_FOLDERS = ("conformance", "crash")


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Leftovers(), "leftovers")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(here) and item.path.relative_to(here).parts[0] in SLOW_FOLDERS:
            item.add_marker(pytest.mark.slow)
