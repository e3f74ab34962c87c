"""API keys of service accounts, for clients that send one bearer all the time, such as those of OpenAI."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request

from sarto.api.http.requests import read_message
from sarto.api.http.responses import Reply, reply
from sarto.api.http.routing import Route
from sarto.api.http.services import in_thread, principal, services
from sarto.api.iam.policies import account_project
from sarto.control.access import api_keys
from sarto.control.aip.times import timestamp
from sarto.control.context import AnyRow
from sarto.schema.wire import Message, Text, Timestamp


class CreateApiKeyRequest(Message):
    """`project` is that of requests which name none; default: the account's."""

    display_name: Text = ""
    project: Text = ""
    expire_time: Timestamp | None = None


class ApiKey(Message):
    """`keyString` is only in the answer of create."""

    name: Text = ""
    uid: Text = ""
    display_name: Text = ""
    project: Text = ""
    create_time: Text = ""
    expire_time: Text = ""
    key_string: Text = ""


async def create(request: Request) -> Reply:
    body = await read_message(request, CreateApiKeyRequest)
    most_days = services(request).max_key_days
    row, bearer = await _called(request, api_keys.create, body.project, body.display_name, body.expire_time, most_days)
    return reply(_written(row) | {"keyString": bearer})


async def list_keys(request: Request) -> Reply:
    rows = await _called(request, api_keys.list_keys)
    return reply({"apiKeys": [_written(row) for row in rows]} if rows else {})


async def revoke(request: Request) -> Reply:
    await _called(request, api_keys.revoke, request.path_params["key"])
    return reply({})


async def _called(request: Request, function: Any, *more: Any) -> Any:
    email = request.path_params["account"]
    project = account_project(request.path_params["project"], email)
    return await in_thread(request, function, services(request).database, principal(request), project, email, *more)


def _written(row: AnyRow) -> dict[str, Any]:
    of_account = row.email.partition("@")[2].partition(".")[0]
    return {
        "name": f"projects/{of_account}/serviceAccounts/{row.email}/apiKeys/{row.id}",
        "uid": row.id,
        "displayName": row.display_name,
        "project": f"projects/{row.project}",
        "createTime": timestamp(row.create_time),
        **({"expireTime": timestamp(row.expire_time)} if row.expire_time is not None else {}),
    }


KEYS = "/v1/projects/{project}/serviceAccounts/{account}/apiKeys"
ROUTES = [
    Route("POST", KEYS, create, f"{api_keys.KEYS}.create", "Create an API key", CreateApiKeyRequest, ApiKey),
    Route("GET", KEYS, list_keys, f"{api_keys.KEYS}.list", "List the API keys of an account"),
    Route("DELETE", f"{KEYS}/{{key}}", revoke, f"{api_keys.KEYS}.delete", "Revoke an API key"),
]
