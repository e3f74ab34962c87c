"""The numbers of system calls in our filters are those of the kernel's headers, where those are installed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sarto.system.seccomp import CLONE, CLONE3, COMPUTING, PRLIMIT, REFUSED, SOCKET

HEADERS = (
    (0, [Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"), Path("/usr/include/asm/unistd_64.h")]),
    (1, [Path("/usr/include/asm-generic/unistd.h")]),
)
OTHERS = {"socket": SOCKET, "prlimit64": PRLIMIT, "clone": CLONE, "clone3": CLONE3}
GENERIC_NAMES = {"newfstatat": "fstatat"}
"""The generic header has some calls under the name of their 64-bit form alone."""


@pytest.mark.parametrize(("column", "places"), HEADERS)
def test_every_number_is_that_of_the_header(column: int, places: list[Path]) -> None:
    header = next((path for path in places if path.exists()), None)
    if header is None:
        pytest.skip("the kernel's headers are not installed")
    defined = re.findall(r"^#define __NR(?:3264)?_(\w+)\s+(\d+)", header.read_text(), re.MULTILINE)
    numbers = {name: int(number) for name, number in defined}
    wrong = {}
    for name, pair in {**REFUSED, **COMPUTING, **OTHERS}.items():
        found = numbers.get(name, numbers.get(GENERIC_NAMES.get(name, ""), -1))
        if found != pair[column] and (found != -1 or pair[column] < 440):  # older headers lack new calls
            wrong[name] = (pair[column], found)
    assert wrong == {}


def test_user_code_has_no_call_that_a_run_is_refused() -> None:
    assert COMPUTING.keys() & {*REFUSED, "socket", "clone", "clone3", "execve", "kill"} == set()
