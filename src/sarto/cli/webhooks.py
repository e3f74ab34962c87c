"""`sarto webhooks …`: URLs that receive new states of tuning jobs."""

from __future__ import annotations

from typing import Annotated

import typer

from sarto.cli import output
from sarto.cli.options import AsJson, Limit, client, resource

app = typer.Typer(help="Webhooks: URLs that receive new states of tuning jobs.", no_args_is_help=True)
Webhook = Annotated[str, typer.Argument(help="Webhook id, or its full resource name.")]


@app.command()
def create(
    context: typer.Context,
    uri: Annotated[str, typer.Argument(metavar="URL", help="The https URL to call.")],
    name: Annotated[str, typer.Option("--name", help="Display name.")] = "",
    as_json: AsJson = False,
) -> None:
    """Create a webhook. Its secret, which signs its messages, is shown only once."""
    with client(context) as api:
        webhook = api.post(f"/v1/{api.parent}/webhooks", {"uri": uri, "displayName": name})
    if as_json:
        output.print_json(webhook)
    else:
        output.print_facts(
            {"Webhook": output.short_id(webhook["name"]), "URL": webhook["uri"], "Secret": webhook["secret"]}
        )


@app.command("list")
def list_webhooks(context: typer.Context, limit: Limit = 50, as_json: AsJson = False) -> None:
    """Webhooks of the project and location."""
    with client(context) as api:
        webhooks = api.pages(f"/v1/{api.parent}/webhooks", "webhooks", limit)
    if as_json:
        output.print_json(webhooks)
        return
    rows = (
        {"WEBHOOK": output.short_id(one["name"]), "NAME": one.get("displayName", ""), "URL": one["uri"]}
        for one in webhooks
    )
    output.print_rows(rows, ("WEBHOOK", "NAME", "URL"), "No webhooks. `sarto webhooks create URL` creates one.")


@app.command()
def delete(context: typer.Context, webhook: Webhook) -> None:
    """Delete a webhook; no further message is sent to it."""
    with client(context) as api:
        api.delete(f"/v1/{resource(api, 'webhooks', webhook)}")
    output.console().print(f"Deleted {webhook}")


@app.command()
def deliveries(context: typer.Context, webhook: Webhook, limit: Limit = 20, as_json: AsJson = False) -> None:
    """Messages to a webhook with the responses, newest first."""
    with client(context) as api:
        entries = api.pages(f"/v1/{resource(api, 'webhooks', webhook)}/deliveries", "deliveries", limit)
    if as_json:
        output.print_json(entries)
        return
    rows = (
        {
            "TIME": output.local_time(one["createTime"]),
            "EVENT": one["message"]["type"],
            "JOB": output.short_id(one["message"]["data"]["name"]),
            "STATE": one["state"],
            "ATTEMPTS": str(one["attempts"]),
            "OUTCOME": one.get("outcome", ""),
        }
        for one in entries
    )
    output.print_rows(rows, ("TIME", "EVENT", "JOB", "STATE", "ATTEMPTS", "OUTCOME"), "No messages yet.")
