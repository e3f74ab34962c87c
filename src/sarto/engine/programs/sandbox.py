"""Enter the sandbox (`sarto.system.sandbox`) and run a program in it.

`python -P -m sarto.engine.programs.sandbox [--data-bytes=N] [--read=PATH] [--write=PATH] MODULE ARGUMENTS` enters the
sandbox and runs that module. A program with a `spec.json` may access the files that its spec names; others those of
`--read` and `--write`. Without a module it prints the missing parts of the sandbox on this platform, one reason per
line, and ends with 1 if there are any. No large module is imported before: namespaces and filters hold for threads that
are started later, and numpy alone starts some.
"""

from __future__ import annotations

import argparse
import runpy
import sys
from pathlib import Path

from sarto.contract.run_folder import SPEC_FILE
from sarto.system.sandbox import confine, keep_temporary_files_in, limit


def main() -> None:
    parser = argparse.ArgumentParser(prog="confine")
    parser.add_argument("--data-bytes", type=int, default=0)
    parser.add_argument("--read", action="append", default=[])
    parser.add_argument("--write", action="append", default=[])
    parser.add_argument("program", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    read, write = options.read, options.write
    program, *arguments = options.program or [""]
    if arguments and Path(arguments[0]).name == SPEC_FILE:
        # The schema is imported for these programs alone, and only by a process that still has one thread.
        from sarto.contract.programs import files_of

        files = files_of(program, arguments)
        read, write = [*read, *files.read], [*files.writable, *write]
    reasons = confine(read, write)
    if not program:
        sys.exit("\n".join(reasons) or 0)
    if write:
        keep_temporary_files_in(write[0])
    limit(options.data_bytes)
    sys.argv = options.program
    runpy.run_module(program, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
