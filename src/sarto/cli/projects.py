"""`sarto projects …`: the walls between users."""

from __future__ import annotations

from typing import Annotated

import typer

from sarto.cli import output
from sarto.cli.options import AsJson, client

app = typer.Typer(help="Projects: list, create.", no_args_is_help=True)
COLLECTION = "/v3/projects"


@app.command("list")
def list_projects(context: typer.Context, as_json: AsJson = False) -> None:
    """Projects the caller may see."""
    with client(context) as api:
        projects = api.pages(COLLECTION, "projects", 1000)
    if as_json:
        output.print_json(projects)
        return
    rows = (
        {
            "PROJECT": project["projectId"],
            "NUMBER": str(project["projectNumber"]),
            "CREATED": output.local_time(project.get("createTime", "")),
        }
        for project in projects
    )
    output.print_rows(rows, ("PROJECT", "NUMBER", "CREATED"), "No projects.")


@app.command()
def create(
    context: typer.Context,
    project: Annotated[str, typer.Argument(help="Id: 4 to 30 lower case letters, digits and hyphens.")],
    as_json: AsJson = False,
) -> None:
    """Create a project."""
    with client(context) as api:
        made = api.post(COLLECTION, {"projectId": project})
    made = made.get("response", made)
    if as_json:
        output.print_json(made)
    else:
        output.console().print(f"Created project {made['projectId']}, number {made['projectNumber']}")
