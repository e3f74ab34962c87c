"""`sarto models export` and `show`: export a tuned model to a bucket, and show its facts."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

import typer
from rich.text import Text

from sarto.cli import output
from sarto.cli.options import AsJson, client, resource
from sarto.errors import FailedPrecondition


class Format(StrEnum):
    ADAPTER = "adapter"
    MERGED = "merged-safetensors"
    GGUF_F16 = "gguf-f16"
    GGUF_Q8 = "gguf-q8-0"


Name = Annotated[str, typer.Argument(help="A tuned model: its id or name, perhaps with @VERSION.")]


def export(
    context: typer.Context,
    name: Name,
    to: Annotated[str, typer.Option("--to", help="Where to: gs://BUCKET/PATH.")],
    format: Annotated[Format, typer.Option("--format", help="Format of the export.")] = Format.MERGED,
    checkpoint: Annotated[str, typer.Option(help="Another checkpoint than the default one.")] = "",
    as_json: AsJson = False,
) -> None:
    """Write a tuned model to a bucket, read it back and compare it with the served one; waits until it is done."""
    body: dict[str, Any] = {"outputConfig": {"exportFormatId": format, "artifactDestination": {"outputUriPrefix": to}}}
    if checkpoint:
        body["checkpointId"] = checkpoint
    with client(context) as api:
        operation = api.post(f"/v1/{resource(api, 'models', name)}:export", body)
        shown = ""
        while not operation.get("done"):
            message = operation["metadata"].get("progressMessage", "Waiting for its turn.")
            if message != shown:
                output.messages().print(Text(message))
                shown = message
            operation = api.post(f"/v1/{operation['name']}:wait", {"timeout": "1s"})
    if "error" in operation:
        raise FailedPrecondition(operation["error"]["message"])
    if as_json:
        output.print_json(operation)
        return
    compared = operation["metadata"]["comparison"]
    print(operation["metadata"]["outputInfo"]["artifactOutputUri"])
    output.messages().print(
        f"Compared with the served model on {compared['rows']} rows: {compared['mean_kl_nats']:.2g} nats a token apart."
    )


def show(context: typer.Context, name: Name, as_json: AsJson = False) -> None:
    """Show one tuned model: lineage, checkpoints, and the difference of serving from training for each."""
    with client(context) as api:
        model = api.get(f"/v1/{resource(api, 'models', name)}")
    if as_json:
        output.print_json(model)
        return
    metadata = model.get("metadata", {})
    facts = {
        "Model": model["name"],
        "Name": model.get("displayName", ""),
        "Base model": metadata.get("baseModel", ""),
        "Tuning job": metadata.get("tuningJob", ""),
        "Default checkpoint": model.get("defaultCheckpointId", ""),
    }
    for checkpoint, certificate in sorted(metadata.get("parityCertificates", {}).items()):
        facts[f"Parity of {checkpoint}"] = (
            f"{certificate['meanKlNats']:.2g} nats a token over {certificate['replyTokens']} tokens "
            f"({certificate['klToleranceNats']:.2g} allowed, {certificate['precision']})"
        )
    output.print_facts(facts)
