"""`sarto models …`: tuned models and base models of a server, and the weights on this machine."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.text import Text

from sarto import settings
from sarto.catalog import Catalog
from sarto.cli import base_weights, exports, output
from sarto.cli.options import AsJson, Limit, client

app = typer.Typer(help="Models: list, show, export, pull.", no_args_is_help=True)
app.command("export")(exports.export)
app.command("show")(exports.show)
TUNED = "labels.tune-type:*"


@app.command("list")
def list_models(
    context: typer.Context,
    base: Annotated[bool, typer.Option("--base", help="The base models that can be tuned, instead.")] = False,
    limit: Limit = 100,
    as_json: AsJson = False,
) -> None:
    """Tuned models of the project and location, newest first; with --base, the base models."""
    with client(context) as api:
        if base:
            models = api.pages("/v1/publishers/-/models", "publisherModels", limit)
        else:
            models = api.pages(f"/v1/{api.parent}/models", "models", limit, filter=TUNED)
    if as_json:
        output.print_json(models)
    elif base:
        output.print_rows(map(base_row, models), ("MODEL", "ABOUT"), "No base models.")
    else:
        columns = ("MODEL", "NAME", "BASE MODEL", "ENDPOINT", "CREATED")
        output.print_rows(map(tuned_row, models), columns, "No tuned models yet. `sarto tune` creates one.")


def base_row(model: dict[str, Any]) -> dict[str, str]:
    return {"MODEL": model["displayName"], "ABOUT": model.get("description", "")}


def tuned_row(model: dict[str, Any]) -> dict[str, str]:
    endpoints = [deployed["endpoint"] for deployed in model.get("deployedModels", ())]
    return {
        "MODEL": output.short_id(model["name"]),
        "NAME": model.get("displayName", ""),
        "BASE MODEL": model.get("labels", {}).get("google-vertex-llm-tuning-base-model-id", ""),
        "ENDPOINT": output.short_id(endpoints[-1]) if endpoints else "",
        "CREATED": output.local_time(model.get("createTime", "")),
    }


@app.command()
def pull(name: Annotated[str, typer.Argument(help="A base model's name, or the id of its weights.")]) -> None:
    """Download base weights onto this machine, once; no network is needed afterwards. Works without a server."""
    chosen = settings.load()
    catalog = Catalog.load(chosen.home, chosen.models_folder)
    out = output.messages()
    weights = base_weights.find_weights(catalog, name)
    folder, is_new = base_weights.pull(catalog, weights, lambda text: out.print(Text(text)))
    print(f"{weights.title} ({weights.license}) {'is now' if is_new else 'was already'} at {folder}")
