"""`sarto chat`: chat with a tuned model, an endpoint or a base model; replies are streamed."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from sarto.cli import output
from sarto.cli.client import Client
from sarto.cli.options import client
from sarto.errors import InvalidArgument


def chat(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="Endpoint id, models/ID, a full resource name, or a base model.")],
    prompt: Annotated[str, typer.Argument(help="One prompt; without it, a conversation.")] = "",
    system: Annotated[str, typer.Option("--system", help="System instruction.")] = "",
    temperature: Annotated[float | None, typer.Option(help="0 always takes the likeliest token.", min=0, max=2)] = None,
    max_output_tokens: Annotated[int | None, typer.Option(help="Longest answer, in tokens.", min=1)] = None,
    seed: Annotated[int | None, typer.Option(help="The same seed generates the same answer.")] = None,
) -> None:
    """Chat with a model. With PROMPT, print its reply and end; else continue until an empty line or Ctrl-D."""
    numbers = {"temperature": temperature, "maxOutputTokens": max_output_tokens, "seed": seed}
    body: dict[str, Any] = {
        "generationConfig": {key: value for key, value in numbers.items() if value is not None},
        "contents": [],
    }
    if system:
        body["systemInstruction"] = {"parts": [{"text": system}]}
    with client(context) as api:
        name = target(api, model)
        if prompt:
            say(api, name, body, prompt)
            return
        output.messages().print("An empty line ends the conversation.", style="dim")
        for line in lines():
            say(api, name, body, line)


def target(api: Client, model: str) -> str:
    """The resource that generates: digits are an endpoint, other bare words a base model."""
    if model.startswith("projects/"):
        return model
    if model.startswith(("models/", "endpoints/")):
        return f"{api.parent}/{model}"
    if model.isdigit():
        return f"{api.parent}/endpoints/{model}"
    publisher, _, name = model.rpartition("/")
    return f"{api.parent}/publishers/{publisher or 'google'}/models/{name}"


def say(api: Client, name: str, body: dict[str, Any], text: str) -> None:
    """Send one more user turn, print the reply as it streams, and append both turns to `body`."""
    try:
        text.encode()
    except UnicodeEncodeError:  # an argument of the shell with bytes that are not UTF-8
        raise InvalidArgument("The prompt is not UTF-8; write it in a terminal with a UTF-8 locale.") from None
    body["contents"].append({"role": "user", "parts": [{"text": text}]})
    answer = ""
    for event in api.events(f"/v1/{name}:streamGenerateContent", body):
        for candidate in event.get("candidates", ())[:1]:
            piece = "".join(part.get("text", "") for part in candidate.get("content", {}).get("parts", ()))
            sys.stdout.write(piece)
            sys.stdout.flush()
            answer += piece
    sys.stdout.write("\n")
    body["contents"].append({"role": "model", "parts": [{"text": answer}]})


def lines() -> Iterator[str]:
    """The lines that the user types, until an empty line or the end of input."""
    out = output.messages()
    while True:
        try:
            line = out.input("[bold]> [/bold]").strip()
        except EOFError:
            return
        if not line:
            return
        yield line
