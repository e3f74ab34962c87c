"""The spec of each program of the engine, how a program reads it, and the files that it names.

A program is started with the arguments `SPEC_FILE PLACE=FOLDER…`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from sarto.contract.common import Files, Record
from sarto.contract.evaluation_run import EvaluationSpec
from sarto.contract.export_run import ExportSpec
from sarto.contract.places import Places
from sarto.contract.tuning_run import RunSpec

Spec = RunSpec | ExportSpec | EvaluationSpec
S = TypeVar("S", bound=Record)
SPECS: dict[str, type[Spec]] = {
    "sarto.engine.programs.tune": RunSpec,
    "sarto.engine.programs.export": ExportSpec,
    "sarto.engine.programs.evaluate": EvaluationSpec,
}


def read_spec(kind: type[S], arguments: Sequence[str]) -> S:
    """A program's spec, with paths of this machine. Raises ValueError for a name outside of the places."""
    return Places.parse(arguments[1:]).located(kind.model_validate_json(Path(arguments[0]).read_bytes()))


def files_of(program: str, arguments: Sequence[str]) -> Files:
    """The files of this machine that a program may access. Raises KeyError for an unknown program."""
    kind: type[Spec] = SPECS[program]
    files = read_spec(kind, arguments).files()
    return files.model_copy(update={"read": [arguments[0], *files.read]})
