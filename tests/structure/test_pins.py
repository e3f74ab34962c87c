"""What can be said of the dependencies without asking anyone: each is pinned, by version alone, and none by a place."""

from __future__ import annotations

import re

import pytest

from tests.structure.sources import ROOT

PIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*==[0-9][A-Za-z0-9.+!]*")


@pytest.mark.parametrize("name", ["constraints.txt", "constraints-genai3.txt"])
def test_every_package_is_pinned_to_a_version_and_to_no_place(name: str) -> None:
    lines = [line for line in (ROOT / name).read_text().splitlines() if line.strip() and not line.startswith("#")]
    assert lines and [line for line in lines if not PIN.fullmatch(line)] == []
    names = [re.sub(r"[-_.]+", "-", line.partition("==")[0]).lower() for line in lines]
    assert len(names) == len(set(names))
