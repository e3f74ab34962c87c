"""`sarto auth …`: tokens for curl and for whatever else wants a bearer."""

from __future__ import annotations

import typer

from sarto.cli.options import client

app = typer.Typer(help="Credentials.", no_args_is_help=True)


@app.callback()
def auth() -> None:
    """Credentials: the access token of the key in use."""


@app.command("print-access-token")
def print_access_token(context: typer.Context) -> None:
    """Print an access token, good for an hour: what gcloud's command of the same name is for."""
    with client(context) as api:
        print(api.token())
