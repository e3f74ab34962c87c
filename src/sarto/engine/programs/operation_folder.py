"""The beginning and the files of the program of an operation: its spec, its progress, and its result, written last."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel

from sarto.contract.common import Record
from sarto.contract.export_run import ExportProgress
from sarto.contract.programs import read_spec
from sarto.contract.run_folder import OPERATION_PROGRESS_FILE, RESULT_FILE
from sarto.system.files import write_whole
from sarto.system.process import end_with_parent

S = TypeVar("S", bound=Record)


def begin(kind: type[S], arguments: list[str]) -> S:
    """The spec of this process, which logs from now on and ends with its parent."""
    spec = read_spec(kind, arguments)
    end_with_parent()
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    return spec


def tell(folder: Path, percent: int, message: str) -> None:
    """Write the progress of the work."""
    progress = ExportProgress(percent=percent, message=message).model_dump_json().encode()
    write_whole(folder / OPERATION_PROGRESS_FILE, progress)


def write_result(folder: Path, result: BaseModel) -> None:
    write_whole(folder / RESULT_FILE, result.model_dump_json(indent=1).encode())
