"""`sarto audit …`: the record of who did what. `verify` and `export` read the database itself, on this machine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from sarto import settings as settings_
from sarto.cli import output
from sarto.cli.options import AsJson, Limit, client
from sarto.control import audit_log
from sarto.errors import FailedPrecondition
from sarto.storage.database import Database

app = typer.Typer(help="The audit log: list, verify, export.", no_args_is_help=True)
Home = Annotated[Path | None, typer.Option(help="Folder of everything; default SARTO_HOME.", metavar="DIR")]


@app.command("list")
def list_entries(context: typer.Context, limit: Limit = 50, as_json: AsJson = False) -> None:
    """The project's entries, newest first."""
    with client(context) as api:
        body = {"resourceNames": [f"projects/{api.project}"], "pageSize": min(limit, 1000)}
        found = api.post("/v2/entries:list", body).get("entries", [])
    if as_json:
        output.print_json(found)
        return
    rows = (
        {
            "TIME": output.local_time(one["timestamp"]),
            "WHO": one["protoPayload"]["authenticationInfo"]["principalEmail"],
            "DID": one["protoPayload"]["methodName"],
            "ON": one["protoPayload"]["resourceName"],
            "RESULT": one["protoPayload"]["status"].get("message") or "ok",
        }
        for one in found
    )
    output.print_rows(rows, ("TIME", "WHO", "DID", "ON", "RESULT"), "No entries.")


@app.command()
def verify(
    home: Home = None,
    anchor: Annotated[str, typer.Option(help="POSITION:HASH that an earlier verify printed.", metavar="ANCHOR")] = "",
) -> None:
    """Check that no entry was removed, changed or moved, and that the end is not cut off. Prints an anchor to keep
    somewhere else: with it, a log that was written anew as a whole is found too."""
    with _database(home) as database:
        verdict = audit_log.verify(database, anchor)
    if verdict.fault:
        raise FailedPrecondition(f"The audit log was tampered with: {verdict.fault}.")
    out = output.console()
    out.print(f"{verdict.position} entries, each in its place. {verdict.unsealed} more wait to be chained.")
    out.print(f"Anchor: {verdict.position}:{verdict.hash}", soft_wrap=True)


@app.command()
def export(home: Home = None) -> None:
    """Print every entry as a line of JSON, oldest first."""
    with _database(home) as database:
        for line in audit_log.export(database):
            print(line)


@contextmanager
def _database(home: Path | None) -> Iterator[Database]:
    settings = settings_.load(home)
    if not settings.database_url and not (settings.home / "sarto.db").exists():
        raise FailedPrecondition(f"There is no database in {settings.home}; name the home with --home.")
    database = Database.in_home(settings.home, settings.database_url)
    try:
        yield database
    finally:
        database.close()
