"""Options that several commands share, and the client they lead to."""

from __future__ import annotations

from typing import Annotated

import typer

from sarto.cli.client import Client, Connection

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
BaseModel = Annotated[str, typer.Option("--model", "-m", help="Base model, as in `sarto models list --base`.")]
Limit = Annotated[int, typer.Option(help="Most rows to show.", min=1)]

DEFAULT_BASE_MODEL = "gemini-2.0-flash-001"


def client(context: typer.Context) -> Client:
    """The client of this call of the program; use it in a `with` block."""
    connection = context.obj
    assert isinstance(connection, Connection)
    return Client(connection)


def resource(client: Client, collection: str, text: str) -> str:
    """A full resource name from a full one or a bare id in the connection's project and location."""
    return text if "/" in text else f"{client.parent}/{collection}/{text}"
