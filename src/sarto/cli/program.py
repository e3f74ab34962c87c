"""The `sarto` program: its commands, the options before them, and how errors end (a paragraph, exit status 1 or 2)."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

import sarto
from sarto import settings
from sarto.cli import jobs, models, output, webhooks
from sarto.cli.access import audit, auth, iam, keys, projects
from sarto.cli.backup import backup, restore
from sarto.cli.chat import chat
from sarto.cli.client import Connection
from sarto.cli.datasets import data
from sarto.cli.doctor import doctor
from sarto.cli.evaluate import evaluate
from sarto.cli.serve import serve
from sarto.errors import SartoError

app = typer.Typer(
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
    key_file = credentials or settings.default_home() / "credentials" / "admin.json"
    context.obj = Connection(url=url, key_file=key_file, project=project, location=location, given_token=token)


@app.command()
def version() -> None:
    """Print the version."""
    print(sarto.__version__)


app.command()(serve)
app.command()(jobs.tune)
app.command()(chat)
app.command()(doctor)
app.command()(backup)
app.command()(restore)
app.command("eval")(evaluate)
app.add_typer(jobs.app, name="jobs")
app.add_typer(models.app, name="models")
app.add_typer(projects.app, name="projects")
app.add_typer(webhooks.app, name="webhooks")
app.add_typer(data.app, name="data")
app.add_typer(iam.app, name="iam")
app.add_typer(audit.app, name="audit")
app.add_typer(auth.app, name="auth")
app.add_typer(keys.app, name="kms")


def run() -> None:
    """Run one command and end the process."""
    try:
        app()
    except SartoError as error:
        sys.exit(output.print_error(error))
