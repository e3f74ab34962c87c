"""A run by way of the resident process: `python -m sarto.engine.warm SOCKET SPEC` lives as long as the run and ends
with its code; when it is killed, the run stops. Imports next to nothing, so that it starts in milliseconds.
"""

from __future__ import annotations

import socket
import sys

MACHINE_FAULT = 70


def main(arguments: list[str]) -> int:
    path, spec = arguments
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(path)
        socket.send_fds(connection, [spec.encode() + b"\n"], [sys.stdout.fileno(), sys.stderr.fileno()])
        answer = connection.makefile().readline()
    code = int(answer) if answer else MACHINE_FAULT
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
