"""`sarto auth …`: tokens for curl and for whatever else wants a bearer."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import quote

import typer

from sarto.cli.client import SCOPE
from sarto.cli.options import client

app = typer.Typer(help="Credentials.", no_args_is_help=True)


@app.callback()
def auth() -> None:
    """Credentials: the access token of the key in use."""


@app.command("print-access-token")
def print_access_token(
    context: typer.Context,
    impersonate: Annotated[
        str,
        typer.Option(
            "--impersonate-service-account", metavar="EMAIL", help="Of this account; you must be its token creator."
        ),
    ] = "",
) -> None:
    """Print an access token, good for an hour: what gcloud's command of the same name is for."""
    with client(context) as api:
        if not impersonate:
            print(api.token())
            return
        url = f"/v1/projects/-/serviceAccounts/{quote(impersonate)}:generateAccessToken"
        print(api.post(url, {"scope": [SCOPE]})["accessToken"])
