"""`sarto projects …`: projects and their quotas."""

from __future__ import annotations

from typing import Annotated

import typer

from sarto.cli import output
from sarto.cli.options import AsJson, client
from sarto.errors import InvalidArgument

app = typer.Typer(help="Projects: list, create, quota.", no_args_is_help=True)
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
        created = api.post(COLLECTION, {"projectId": project})
    created = created.get("response", created)
    if as_json:
        output.print_json(created)
    else:
        output.console().print(f"Created project {created['projectId']}, number {created['projectNumber']}")


@app.command()
def quota(
    context: typer.Context,
    project: Annotated[str, typer.Argument(help="Id or number of the project.")],
    concurrent_jobs: Annotated[
        int | None, typer.Option(help="Let so many of its jobs run at once; 0 lets none start.", min=0)
    ] = None,
    default: Annotated[bool, typer.Option("--default", help="Back to the server's own number.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show a project's quota of concurrent jobs; an administrator of the service may change it."""
    if default and concurrent_jobs is not None:
        raise InvalidArgument("Give --concurrent-jobs or --default, not both.")
    path = f"{COLLECTION}/{project}/quota"
    with client(context) as api:
        if default:
            api.delete(path)
        if concurrent_jobs is not None:
            api.request("PATCH", path, json={"concurrentJobs": concurrent_jobs})
        current = api.get(path)
    if as_json:
        output.print_json(current)
        return
    whose = "the server's default" if current["isDefault"] else "the project's own"
    facts = {
        "Concurrent jobs": f"{current['concurrentJobs']} ({whose})",
        "Running": str(current["runningJobs"]),
        "Pending": str(current["pendingJobs"]),
    }
    output.print_facts(facts)
