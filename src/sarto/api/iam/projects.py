"""Projects: create, get, list."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from starlette.requests import Request

from sarto.api.http.requests import read_message
from sarto.api.http.responses import Reply, reply
from sarto.api.http.routing import PAGE, SIGNED_IN, Route
from sarto.api.http.services import in_thread, principal, services
from sarto.control.access import authorization, projects
from sarto.control.access.principal import Principal
from sarto.control.access.projects import Project
from sarto.schema.wire import Message, Text, format_time
from sarto.storage.database.database import Database, report


class ProjectMessage(Message):
    """The resource manager's Project; only `projectId` is read."""

    name: Text = ""
    project_id: Text = ""
    project_number: Text = ""
    display_name: Text = ""
    state: Text = ""
    create_time: Text = ""


async def create(request: Request) -> Reply:
    body = await read_message(request, ProjectMessage, "project")
    return reply(_written(await in_thread(request, _create, services(request).database, principal(request), body)))


async def get(request: Request) -> Reply:
    caller, text = principal(request), request.path_params["project"]
    database = services(request).database
    return reply(
        _written(
            await in_thread(request, authorization.require, database, caller, "resourcemanager.projects.get", text)
        )
    )


async def list_projects(request: Request) -> Reply:
    visible = await in_thread(request, authorization.visible_projects, services(request).database, principal(request))
    return reply({"projects": [_written(project) for project in visible]})


def _create(database: Database, caller: Principal, body: ProjectMessage) -> Project:
    authorization.require_everywhere(database, caller, "resourcemanager.projects.create")
    with database.transaction() as connection:
        project = projects.insert(connection, body.project_id, database.now(connection))
        report(connection, "resourcemanager.projects.create", project.number, f"projects/{project.id}")
        return project


def _written(project: Project) -> dict[str, Any]:
    message = ProjectMessage(
        name=f"projects/{project.number}",
        project_id=project.id,
        project_number=project.number,
        display_name=project.id,
        state="ACTIVE",
        create_time=format_time(datetime.fromtimestamp(project.create_time, UTC)),
    )
    return message.to_json()


ROUTES = [
    Route(
        "POST", "/v3/projects", create, "resourcemanager.projects.create", "Create a project",
        ProjectMessage, ProjectMessage,
    ),
    Route("GET", "/v3/projects", list_projects, SIGNED_IN, "List the projects you may see", query=PAGE),
    Route(
        "GET", "/v3/projects/{project}", get, "resourcemanager.projects.get", "Get a project",
        response=ProjectMessage,
    ),
]  # fmt: skip
