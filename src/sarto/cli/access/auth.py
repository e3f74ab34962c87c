"""`sarto auth …`: access tokens for curl and other clients."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import quote

import typer

from sarto.cli import output
from sarto.cli.access import api_keys
from sarto.cli.client import SCOPE
from sarto.cli.options import Home, client
from sarto.errors import FailedPrecondition

app = typer.Typer(help="Credentials.", no_args_is_help=True)
app.add_typer(api_keys.app, name="api-key")


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
    """Print an access token, valid for an hour, like gcloud's command of the same name."""
    with client(context) as api:
        if not impersonate:
            print(api.token())
            return
        url = f"/v1/projects/-/serviceAccounts/{quote(impersonate)}:generateAccessToken"
        print(api.post(url, {"scope": [SCOPE]})["accessToken"])


@app.command("new-admin-key")
def new_admin_key(home: Home = None) -> None:
    """Create a new key of the administrator and write it to HOME/credentials/admin.json; older keys stay valid."""
    # Loads the database, which the commands of clients do without.
    from sarto import settings as settings_
    from sarto.control.access.account_store import ADMIN_EMAIL, RENEW, renew_administrator
    from sarto.control.audit import audit_log
    from sarto.storage.database import migrations
    from sarto.storage.database.database import Database

    settings = settings_.load(home)
    if not settings.database_url and not (settings.home / "sarto.db").exists():
        raise FailedPrecondition(
            f"{settings.home} has no database yet; the first `sarto serve` creates it and the key."
        )
    written = settings.home / "address"
    local = written.read_text().strip() if written.exists() else f"http://{settings.host}:{settings.port}"
    address = settings.public_url or local
    database = Database.in_home(settings.home, settings.database_url)
    try:
        migrations.upgrade(database)
        with audit_log.by_command(database, RENEW):
            path = renew_administrator(database, settings.home, settings.project, address, settings.max_key_days)
    finally:
        database.close()
    output.console().print(f"Wrote {path}; `sarto --project sys iam keys list {ADMIN_EMAIL}` shows the others")
