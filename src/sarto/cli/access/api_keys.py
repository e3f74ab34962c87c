"""`sarto auth api-key …`: bearers for clients of OpenAI and for curl."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated
from urllib.parse import quote

import typer

from sarto.cli import output
from sarto.cli.client import Client
from sarto.cli.options import AsJson, client

app = typer.Typer(help="API keys: bearers that are valid until they are revoked.", no_args_is_help=True)
Account = Annotated[str, typer.Option("--account", metavar="EMAIL", help="Of this account; default: the caller's own.")]


@app.command("create")
def create(
    context: typer.Context,
    account: Account = "",
    name: Annotated[str, typer.Option(help="A name for people.")] = "",
    days: Annotated[float, typer.Option(help="Days until it expires; 0: never.", min=0.0)] = 0.0,
    as_json: AsJson = False,
) -> None:
    """Create a key of an account for the project in use, and print it. It is shown only this once."""
    with client(context) as api:
        body = {"project": api.project, "displayName": name}
        if days:
            body["expireTime"] = f"{datetime.now(UTC) + timedelta(days=days):%Y-%m-%dT%H:%M:%SZ}"
        made = api.post(_keys(api, account), body)
    if as_json:
        output.print_json(made)
    else:
        print(made["keyString"])


@app.command("list")
def list_keys(context: typer.Context, account: Account = "", as_json: AsJson = False) -> None:
    """The keys of an account, without their secrets."""
    with client(context) as api:
        keys = api.get(_keys(api, account)).get("apiKeys", [])
    if as_json:
        output.print_json(keys)
        return
    rows = (
        {
            "KEY": one["uid"],
            "NAME": one["displayName"],
            "PROJECT": one["project"].removeprefix("projects/"),
            "CREATED": one["createTime"][:19],
            "UNTIL": one.get("expireTime", "")[:19],
        }
        for one in keys
    )
    output.print_rows(rows, ("KEY", "NAME", "PROJECT", "CREATED", "UNTIL"), "No API keys.")


@app.command("revoke")
def revoke(
    context: typer.Context, key: Annotated[str, typer.Argument(help="The key's id.")], account: Account = ""
) -> None:
    """End a key. Requests with it are refused within a second."""
    with client(context) as api:
        api.delete(f"{_keys(api, account)}/{key}")
    output.console().print(f"Revoked {key}")


def _keys(api: Client, account: str) -> str:
    return f"/v1/projects/-/serviceAccounts/{quote(account or api.account)}/apiKeys"
