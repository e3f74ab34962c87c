"""`sarto audit …`: the audit log. `verify` and `export` read the database itself, on this machine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sarto.cli import output
from sarto.cli.options import AsJson, Home, Limit, client
from sarto.errors import FailedPrecondition

if TYPE_CHECKING:
    from sarto.storage.database.database import Database

app = typer.Typer(help="The audit log: list, verify, export.", no_args_is_help=True)


@app.command("list")
def list_entries(context: typer.Context, limit: Limit = 50, as_json: AsJson = False) -> None:
    """The project's entries, newest first."""
    with client(context) as api:
        body = {"resourceNames": [f"projects/{api.project}"], "pageSize": min(limit, 1000)}
        entries = api.post("/v2/entries:list", body).get("entries", [])
    if as_json:
        output.print_json(entries)
        return
    rows = (
        {
            "TIME": output.local_time(one["timestamp"]),
            "WHO": _who(one["protoPayload"]["authenticationInfo"]),
            "DID": one["protoPayload"]["methodName"],
            "ON": one["protoPayload"]["resourceName"],
            "RESULT": _result(one["protoPayload"]["status"]),
        }
        for one in entries
    )
    output.print_rows(rows, ("TIME", "WHO", "DID", "ON", "RESULT"), "No entries.")


@app.command()
def verify(
    home: Home = None,
    anchor: Annotated[str, typer.Option(help="POSITION:HASH that an earlier verify printed.", metavar="ANCHOR")] = "",
) -> None:
    """Check that no entry was removed, changed or moved, and that the end is not truncated. Prints an anchor to keep
    somewhere else: with it, a log that was rewritten as a whole is detected too."""
    from sarto.control.audit import chain  # loads the database, which the commands of clients do without

    with _database(home) as (database, data):
        verdict = chain.verify(database, anchor, data / chain.FOLDER)
    if verdict.fault:
        raise FailedPrecondition(f"The audit log is not intact: {verdict.fault}.")
    out = output.console()
    removed = f" Those to {verdict.start} were exported and removed before." if verdict.start else ""
    count = verdict.position - verdict.start
    out.print(f"{count} entries, each in its place. {verdict.unsealed} more wait to be chained.{removed}")
    out.print(f"Anchor: {verdict.position}:{verdict.hash}", soft_wrap=True)


@app.command()
def export(home: Home = None) -> None:
    """Print every entry as a line of JSON, oldest first."""
    from sarto.control.audit import chain

    with _database(home) as (database, _):
        for line in chain.export(database):
            print(line)


def _who(info: dict[str, Any]) -> str:
    """The principal, and the principal on whose behalf the service acted."""
    delegators = [one["principalSubject"].partition(":")[2] for one in info.get("serviceAccountDelegationInfo", ())]
    return " for ".join([info["principalEmail"] or "-", *delegators])


def _result(status: dict[str, Any]) -> str:
    return status.get("message") or f"error {status['code']}" if status else "ok"


@contextmanager
def _database(home: Path | None) -> Iterator[tuple[Database, Path]]:
    """The database and the folder of its data."""
    from sarto import settings as settings_
    from sarto.storage.database.database import Database

    settings = settings_.load(home)
    if not settings.database_url and not (settings.home / "sarto.db").exists():
        raise FailedPrecondition(f"There is no database in {settings.home}; name the home with --home.")
    database = Database.in_home(settings.home, settings.database_url)
    try:
        yield database, settings.shared_folder
    finally:
        database.close()
