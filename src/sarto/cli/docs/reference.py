"""The generated pages of `docs/`, from the commands and the route table: `python -m sarto.cli.docs.reference docs`, the
command of `make docs`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
import typer.main

from sarto.api.routes import ROUTES
from sarto.cli.docs import settings_table, support
from sarto.cli.program import app

COMMANDS_HEAD = """# The `sarto` program

`sarto serve` runs the service; `sarto models pull` and `sarto data convert` work on this machine;
every other command is a client of the API.
Generated from the commands by `make docs`.

Exit status: 0 success, 1 failure, 2 invalid request.
"""


ROUTES_HEAD = """# Routes

Every URL of the service, generated from the route table by `make docs`. `/{api}/` is `/v1/` and `/v1beta1/` alike.
*public* needs no token; *signed-in* any valid one. `/openapi.json` describes bodies and responses, `/docs` displays it.

| Method | Path | Permission | Does |
|---|---|---|---|
"""


def pages() -> dict[str, str]:
    """File name → Markdown."""
    return {"cli.md": commands_page(), "routes.md": routes_page(), "support.md": support.page()}


def commands_page() -> str:
    return COMMANDS_HEAD + "".join(_sections(typer.main.get_command(app), ("sarto",)))


def routes_page() -> str:
    rows = (f"| {route.method} | `{route.path}` | {route.permission} | {route.summary} |\n" for route in ROUTES)
    return ROUTES_HEAD + "".join(rows)


def _sections(command: Any, path: tuple[str, ...]) -> Iterator[str]:
    commands = _subcommands(command)
    if len(path) == 1 or not commands:
        yield _section(command, path)
    for name in sorted(commands):
        yield from _sections(commands[name], (*path, name))


def _subcommands(command: Any) -> dict[str, Any]:
    if not hasattr(command, "list_commands"):  # only groups have them
        return {}
    context = typer.Context(command)
    return {name: command.get_command(context, name) for name in command.list_commands(context)}


def _section(command: Any, path: tuple[str, ...]) -> str:
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    options = [p for p in command.params if p.param_type_name == "option" and p.name != "help"]
    usage = " ".join([*path, *(["[OPTIONS]"] if options else []), *map(_argument, arguments)])
    if hasattr(command, "list_commands"):
        usage += " COMMAND"
    title = "Before every command" if len(path) == 1 else f"`{' '.join(path)}`"
    lines = ["", f"## {title}", "", f"    {usage}", ""]
    if len(path) > 1:
        lines += [str(command.help).replace("\n", " "), ""]
    rows = [(f"`{_argument(p)}`", p.help or "") for p in arguments]
    rows += [(f"`{', '.join([*p.opts, *p.secondary_opts])}`", _option(p)) for p in options]
    if rows:
        lines += ["| | |", "|---|---|", *(f"| {name} | {text} |" for name, text in rows), ""]
    return "\n".join(lines)


def _argument(parameter: Any) -> str:
    name = str(parameter.metavar or parameter.name).upper()
    return name if parameter.required else f"[{name}]"


def _option(parameter: Any) -> str:
    text = str(parameter.help or "")
    if parameter.envvar:
        text += f" Environment: `{parameter.envvar}`."
    default = parameter.default
    if default not in (None, "") and not isinstance(default, bool) and not callable(default):
        text += f" Default: `{default}`."
    return text.strip().replace("|", "\\|")


if __name__ == "__main__":
    docs = Path(sys.argv[1])
    for name, text in pages().items():
        (docs / name).write_text(text, encoding="utf-8")
    operations = docs / "operations.md"
    operations.write_text(settings_table.with_table(operations.read_text(encoding="utf-8")), encoding="utf-8")
