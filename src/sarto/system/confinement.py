"""The command line that starts a program in the sandbox (`engine.programs.sandbox`)."""

from __future__ import annotations

import sys
from collections.abc import Iterable


def confined(module: str, data_bytes: int = 0, read: Iterable[str] = (), write: Iterable[str] = ()) -> list[str]:
    """`read` and `write` are for programs without a spec. `-P` excludes modules of the working folder."""
    files = [*(f"--read={path}" for path in read), *(f"--write={path}" for path in write)]
    return [sys.executable, "-P", "-m", "sarto.engine.programs.sandbox", f"--data-bytes={data_bytes}", *files, module]
