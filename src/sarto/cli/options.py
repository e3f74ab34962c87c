"""Options that several commands share, and the client for them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sarto.cli.client import Client, Connection
from sarto.errors import InvalidArgument
from sarto.schema.tuning_jobs import SPECS, SpecRow, TuningMode

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
BaseModel = Annotated[str, typer.Option("--model", "-m", help="Base model, as in `sarto models list --base`.")]
Method = Annotated[str, typer.Option("--method", help=f"Tuning method: {' or '.join(SPECS)}.")]
TuningModeOption = Annotated[
    str, typer.Option("--tuning-mode", help="adapter, or full: all weights; open models only.")
]
Home = Annotated[Path | None, typer.Option(help="Folder of everything; default SARTO_HOME.", metavar="DIR")]
Limit = Annotated[int, typer.Option(help="Most rows to show.", min=1)]

DEFAULT_BASE_MODEL = "gemini-2.0-flash-001"
DEFAULT_METHOD = next(iter(SPECS))


def client(context: typer.Context) -> Client:
    """The client of this call of the program; use it in a `with` block."""
    connection = context.obj
    assert isinstance(connection, Connection)
    return Client(connection)


def method_row(name: str) -> SpecRow:
    """The method of this name. Raises InvalidArgument."""
    if name not in SPECS:
        raise InvalidArgument(f"--method is {' or '.join(SPECS)}, not {name}")
    return SPECS[name]


def resource(client: Client, collection: str, text: str) -> str:
    """A full resource name from a full one or a bare id in the connection's project and location."""
    return text if "/" in text else f"{client.parent}/{collection}/{text}"


def tuning_mode_name(mode: str) -> str:
    """The API's name of full tuning, the only mode that is sent. Raises InvalidArgument for an unknown one."""
    if mode != "full":
        raise InvalidArgument(f"--tuning-mode is adapter or full, not {mode}")
    return str(TuningMode.TUNING_MODE_FULL)
