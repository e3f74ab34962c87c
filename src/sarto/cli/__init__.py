"""`sarto …`: `serve` and `models pull` work on this machine; every other command is a client of the API.

Read `program` (commands and error exits), then `client` (server, caller, requests), then one module per noun.
"""

from __future__ import annotations

from sarto.system.process import keep_memory_private


def main() -> None:
    """The `sarto` program."""
    keep_memory_private()
    from sarto.cli.program import run  # here, so that importing one command's module does not load all of them

    run()
