"""Killed with SIGKILL at every named place, before and after it; then started again: nothing may be lost or doubled.

The places are not listed anywhere: one undisturbed pass writes down all it comes to. `SARTO_CRASH=all` tries every one
of them (`make crash`); otherwise some are taken from all over the list.
"""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.crash.worlds import Template, World, api, end, make, plant, start, supervise, violations

IS_ALL = os.environ.get("SARTO_CRASH") == "all"
SOME, OFTEN = 12, 3
AT_ONCE = 4
ROLES: dict[str, Callable[..., None]] = {"api": api, "supervisor": supervise}


def prepare(world: World, role: str) -> None:
    """The jobs that a supervisor finds."""
    if role == "supervisor":
        control = world.open()
        for number, data in enumerate(("train", "die-once", "fault", "slow", "train"), 1):
            make(control, number, data)
        plant(control)
        control.database.close()


def points(template: Template, role: str, log: Path) -> list[tuple[str, int]]:
    """Every place an undisturbed pass comes to, and its first few times there."""
    world = template.world()
    prepare(world, role)
    assert end(start(ROLES[role], world, str(log))) == 0
    template.drop(world)
    counts = Counter(log.read_text().splitlines())
    return [(name, time) for name, count in counts.items() for time in range(1, min(count, OFTEN) + 1)]


def survive(template: Template, role: str, point: tuple[str, int]) -> tuple[list[str], bool]:
    """What is wrong after a death at this place, and whether there was one."""
    world = template.world()
    prepare(world, role)
    code = end(start(ROLES[role], world, "", *point))
    if role == "api":
        assert end(start(api, world)) == 0
    assert end(start(supervise, world)) == 0
    control = world.open()
    wrong = [f"{role} {point}: {words}" for words in violations(control)]
    control.database.close()
    template.drop(world)
    return wrong, code == -signal.SIGKILL


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_a_death_anywhere_loses_and_doubles_nothing(
    request: pytest.FixtureRequest, tmp_path: Path, database: str, role: str
) -> None:
    server = request.getfixturevalue("postgres") if database == "postgresql" else ""
    template = Template(tmp_path, server)
    found = points(template, role, tmp_path / "places")
    tried = found if IS_ALL else found[:: max(1, len(found) // SOME)]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        results = list(pool.map(lambda point: survive(template, role, point), tried))
    wrong = [words for words_of_one, _ in results for words in words_of_one]
    deaths = sum(died for _, died in results)
    survived = sum(died and not words for words, died in results)
    print(f"\n{database} {role}: {survived} of {deaths} deaths survived, {len(found)} points known")
    assert wrong == []
    assert deaths >= 0.8 * len(tried), "few places were reached again"
