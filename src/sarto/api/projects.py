"""Projects: create, get, list."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from starlette.requests import Request

from sarto.api.http import Reply, in_thread, principal, read_message, reply, services
from sarto.control import iam, projects
from sarto.control.auth import Principal
from sarto.control.projects import Project
from sarto.schema.wire import Message, Text, format_time
from sarto.storage.database import Database


class ProjectMessage(Message):
    """The resource manager's Project; only `projectId` is read."""

    name: Text = ""
    project_id: Text = ""
    project_number: Text = ""
    display_name: Text = ""
    state: Text = ""
    create_time: Text = ""


async def create(request: Request) -> Reply:
    wanted = await read_message(request, ProjectMessage, "project")
    return reply(_written(await in_thread(request, _create, services(request).database, principal(request), wanted)))


async def get(request: Request) -> Reply:
    caller, text = principal(request), request.path_params["project"]
    database = services(request).database
    return reply(
        _written(await in_thread(request, iam.require, database, caller, "resourcemanager.projects.get", text))
    )


async def list_(request: Request) -> Reply:
    found = await in_thread(request, iam.visible_projects, services(request).database, principal(request))
    return reply({"projects": [_written(project) for project in found]})


def _create(database: Database, caller: Principal, wanted: ProjectMessage) -> Project:
    iam.require_everywhere(database, caller, "resourcemanager.projects.create")
    with database.transaction() as connection:
        return projects.insert(connection, wanted.project_id, database.now(connection))


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
