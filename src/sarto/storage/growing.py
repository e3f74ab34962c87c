"""A file of lines that another process appends to, read as it grows."""

from __future__ import annotations

from pathlib import Path


class GrowingFile:
    """Reads on where it stopped; a line that is not whole yet waits for the next time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0

    def lines(self) -> list[bytes]:
        """What was added since the last call, without blank lines; nothing while there is no file."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                data = file.read()
        except FileNotFoundError:
            return []
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        return [line for line in whole.split(b"\n") if line.strip()]
