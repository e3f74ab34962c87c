"""What a run is given of the service's environment."""

from __future__ import annotations

import pytest

from sarto.control.executors.executor import WAITING, clean_environment


@pytest.mark.parametrize("name", sorted(WAITING))
def test_threads_wait_as_the_environment_says_and_else_as_we_do(name: str) -> None:
    ours = clean_environment({"PATH": "/bin", "SARTO_KEY": "secret"})
    assert ours.items() >= WAITING.items()
    assert "SARTO_KEY" not in ours
    given = clean_environment({name: "7"})
    assert given[name] == "7"
    assert WAITING.keys() & given.keys() == {name}
