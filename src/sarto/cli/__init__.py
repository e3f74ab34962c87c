"""`sarto …`: `serve` and `models pull` work on this machine; everything else is a client of the API like any other.

Read `program` (the commands and how errors end), then `client` (where, who, requests), then one file per noun.
"""

from __future__ import annotations

from sarto.secrecy import keep_memory_private


def main() -> None:
    """The `sarto` program."""
    keep_memory_private()
    from sarto.cli.program import run  # here, so that importing one command's module does not load all of them

    run()
