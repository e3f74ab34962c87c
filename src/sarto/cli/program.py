"""The `sarto` program: its commands, the options before them, and how errors end (a paragraph, exit status 1 or 2)."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer
import typer.main
from typer.core import TyperGroup

import sarto
from sarto.cli import output
from sarto.cli.client import Connection
from sarto.errors import SartoError

COMMANDS = {
    "serve": "serve:serve",
    "tune": "jobs:tune",
    "chat": "chat:chat",
    "doctor": "doctor:doctor",
    "backup": "backup:backup",
    "restore": "backup:restore",
    "eval": "evaluate:evaluate",
    "jobs": "jobs:app",
    "models": "models:app",
    "projects": "access.projects:app",
    "webhooks": "webhooks:app",
    "data": "datasets.data:app",
    "reward": "datasets.rewards:app",
    "iam": "access.iam:app",
    "audit": "access.audit:app",
    "auth": "access.auth:app",
    "kms": "access.keys:app",
}
"""Name of each command or group → the module below `sarto.cli` and its function or Typer."""


class CommandsOnDemand(TyperGroup):
    """Imports the module of the command that runs, and no other: those of the server take over a second."""

    def list_commands(self, ctx: Any) -> list[str]:
        return [*super().list_commands(ctx), *COMMANDS]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in COMMANDS:
            return super().get_command(ctx, cmd_name)
        module, _, attribute = COMMANDS[cmd_name].partition(":")
        found = getattr(import_module(f"sarto.cli.{module}"), attribute)
        if not isinstance(found, typer.Typer):
            function, found = found, typer.Typer(add_completion=False, rich_markup_mode=None)
            found.command(cmd_name)(function)
        command = typer.main.get_command(found)
        command.name = cmd_name
        return command


app = typer.Typer(
    cls=CommandsOnDemand,
    name="sarto",
    help="Tune open models on your own machine, over the API you know.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.callback()
def connect(
    context: typer.Context,
    url: Annotated[
        str, typer.Option(envvar="SARTO_URL", help="Where the server is.", metavar="URL")
    ] = "http://127.0.0.1:8080",
    credentials: Annotated[
        Path | None,
        typer.Option(
            envvar="GOOGLE_APPLICATION_CREDENTIALS",
            help="Service account key or external account file; default: the administrator's key.",
            metavar="FILE",
        ),
    ] = None,
    token: Annotated[
        str,
        typer.Option(envvar="SARTO_TOKEN", help="An access token, in place of a key file.", metavar="TOKEN"),
    ] = "",
    project: Annotated[
        str, typer.Option(envvar="GOOGLE_CLOUD_PROJECT", help="Project id; default: the key's.", metavar="ID")
    ] = "",
    location: Annotated[
        str, typer.Option(envvar="GOOGLE_CLOUD_LOCATION", help="Any region name.", metavar="REGION")
    ] = "us-central1",
) -> None:
    """Tune open models on your own machine, over the API you know."""
    context.obj = Connection(url=url, key_file=credentials, project=project, location=location, given_token=token)


@app.command()
def version() -> None:
    """Print the version."""
    print(sarto.__version__)


def run() -> None:
    """Run one command and end the process."""
    try:
        app()
    except SartoError as error:
        sys.exit(output.print_error(error))
