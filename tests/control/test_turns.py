"""Which project is next."""

from __future__ import annotations

from collections import Counter

from sarto.control.turns import RoundRobin


def test_projects_take_turns_however_much_one_of_them_asks_for() -> None:
    turns = RoundRobin()
    waiting = ["a", "a", "a", "b", "a", "c"]
    assert [turns.next(waiting, {}, 1) for _ in range(6)] == ["a", "b", "c", "a", "b", "c"]


def test_the_project_with_less_in_hand_comes_first_and_one_at_its_bound_not_at_all() -> None:
    turns, in_hand = RoundRobin(), Counter(a=1)
    assert turns.next(["a", "b"], in_hand, 2) == "b"
    in_hand["b"] = 2
    assert turns.next(["a", "b"], in_hand, 2) == "a"
    assert turns.next(["b"], in_hand, 2) is None


def test_a_project_that_comes_back_is_not_served_before_one_that_waited() -> None:
    turns = RoundRobin()
    assert [turns.next(["a"], {}, 1), turns.next(["a", "b"], {}, 1), turns.next(["a", "b"], {}, 1)] == ["a", "b", "a"]
