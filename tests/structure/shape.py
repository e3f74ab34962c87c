"""Counts, for every package, its entries, its floors, and the imports between its entries: `python -m
tests.structure.shape`.

An entry is a module or a package directly inside. Entry A imports entry B when any module in A imports any in B. The
floors are the longest chain of such imports. A circle has no floors, and is printed.
"""

from __future__ import annotations

import graphlib
from collections import defaultdict

from tests.structure.sources import imports, modules


def entries(package: str) -> dict[str, set[str]]:
    """Entry → the entries of the same package that it imports."""
    prefix = package + "."
    found: dict[str, set[str]] = defaultdict(set)
    for name in modules():
        if not name.startswith(prefix):
            continue
        entry = name[len(prefix) :].split(".")[0]
        found[entry] |= {
            target[len(prefix) :].split(".")[0] for target, _ in imports(name) if target.startswith(prefix)
        } - {entry}
    return {entry: targets & set(found) for entry, targets in found.items()}


def packages() -> list[str]:
    names = set(modules())
    return sorted(name for name in names if any(other.startswith(name + ".") for other in names))


def circle(package: str) -> list[str]:
    """The entries of a circle of imports, or nothing."""
    try:
        graphlib.TopologicalSorter(entries(package)).prepare()
    except graphlib.CycleError as error:
        return list(error.args[1])
    return []


def floors(package: str) -> int:
    """The longest chain of imports between entries; 0 where they run in a circle."""
    if circle(package):
        return 0
    graph = entries(package)
    height: dict[str, int] = {}
    for entry in graphlib.TopologicalSorter(graph).static_order():
        height[entry] = 1 + max((height[target] for target in graph[entry]), default=0)
    return max(height.values(), default=0)


def main() -> None:
    print(f"{'package':40} entries floors imports")
    for package in packages():
        graph = entries(package)
        between = sum(len(targets) for targets in graph.values())
        turn = circle(package)
        numbers = f"{package:40} {len(graph):7} {floors(package):6} {between:7}"
        print(numbers + (f"  circle: {' > '.join(turn)}" if turn else ""))


if __name__ == "__main__":
    main()
