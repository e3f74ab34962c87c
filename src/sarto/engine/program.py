"""What the programs behind operations share: they end with whoever started them, and write files whole."""

from __future__ import annotations

import os
import threading
from pathlib import Path

from sarto.schema.runs import ExportProgress

STOPPED = 143


def end_with_parent() -> None:
    """Stop at once when standard input, a pipe that only the parent holds open, comes to its end."""
    threading.Thread(target=_watch, daemon=True).start()


def write_whole(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text)
    partial.replace(path)


def tell(folder: Path, percent: int, message: str) -> None:
    """How far the work is."""
    write_whole(folder / "progress.json", ExportProgress(percent=percent, message=message).model_dump_json())


def _watch() -> None:
    while os.read(0, 1):
        pass
    os._exit(STOPPED)
