"""Service accounts and their keys, in the shape of the IAM service."""

from __future__ import annotations

import json
from base64 import b64encode
from typing import Any

from pydantic import Field
from starlette.requests import Request

from sarto.api.http import Reply, in_thread, principal, read_message, reply, services
from sarto.api.operations import read_timeout
from sarto.api.policies import account_project
from sarto.api.routing import Handler, Route
from sarto.api.tokens import SCOPE
from sarto.control import account_tokens, accounts, service_accounts
from sarto.control.auth import MAX_LIFE_SECONDS, Authenticator
from sarto.control.context import AnyRow
from sarto.control.events import timestamp
from sarto.errors import InvalidArgument, Unimplemented
from sarto.schema.wire import Boolean, Message, Text, Timestamp
from sarto.storage.database import Database

FOREVER = "9999-12-31T23:59:59Z"


class ServiceAccountMessage(Message):
    """The IAM service's ServiceAccount; only `displayName` is read."""

    name: Text = ""
    project_id: Text = ""
    unique_id: Text = ""
    email: Text = ""
    display_name: Text = ""
    oauth2_client_id: Text = ""
    disabled: bool = False
    description: Text = ""


class CreateServiceAccountRequest(Message):
    account_id: Text = ""
    service_account: ServiceAccountMessage | None = None


class CreateServiceAccountKeyRequest(Message):
    """Beside Google's fields, the times between which the key is good."""

    private_key_type: Text = ""
    key_algorithm: Text = ""
    valid_after_time: Timestamp | None = None
    valid_before_time: Timestamp | None = None


class ServiceAccountKey(Message):
    name: Text = ""
    private_key_type: Text = ""
    key_algorithm: Text = ""
    private_key_data: Text = ""
    valid_after_time: Text = ""
    valid_before_time: Text = ""
    key_type: Text = ""
    key_origin: Text = ""
    disabled: bool = False


class GenerateAccessTokenRequest(Message):
    """`scope` is asked for and not looked at: what a token may do is in policies."""

    name: Text = ""
    delegates: list[Text] = Field(default_factory=list)
    scope: list[Text] = Field(default_factory=list)
    lifetime: Text = ""


class GenerateIdTokenRequest(Message):
    name: Text = ""
    delegates: list[Text] = Field(default_factory=list)
    audience: Text = ""
    include_email: Boolean = False


async def _called(request: Request, function: Any, *more: Any) -> Any:
    """`function(database, principal, project, email, …)` for the account of the path."""
    return await _called_with(request, services(request).database, function, *more)


async def _called_with(request: Request, served: Database | Authenticator, function: Any, *more: Any) -> Any:
    email = request.path_params["account"]
    project = account_project(request.path_params["project"], email)
    return await in_thread(request, function, served, principal(request), project, email, *more)


async def create(request: Request) -> Reply:
    asked = await read_message(request, CreateServiceAccountRequest)
    name = asked.service_account.display_name if asked.service_account else ""
    project = request.path_params["project"]
    database, caller = services(request).database, principal(request)
    return reply(_account(await in_thread(request, accounts.create, database, caller, project, asked.account_id, name)))


async def list_(request: Request) -> Reply:
    project = request.path_params["project"]
    found = await in_thread(request, accounts.list_, services(request).database, principal(request), project)
    return reply({"accounts": [_account(row) for row in found]} if found else {})


async def get(request: Request) -> Reply:
    return reply(_account(await _called(request, accounts.get)))


async def delete(request: Request) -> Reply:
    await _called(request, accounts.delete)
    return reply({})


def _switch(function: Any, *parts: str, disabled: bool) -> Handler:
    """Disables or enables an account, or what else the `parts` of the path name."""

    async def switch(request: Request) -> Reply:
        await _called(request, function, *(request.path_params[part] for part in parts), disabled)
        return reply({})

    return switch


async def generate_access_token(request: Request) -> Reply:
    asked = await read_message(request, GenerateAccessTokenRequest)
    _refuse_delegates(asked.delegates)
    if not asked.scope:
        raise InvalidArgument.field("scope", f"Required field is not set; give {SCOPE}.")
    seconds = read_timeout(asked.lifetime, "lifetime") if asked.lifetime else float(MAX_LIFE_SECONDS)
    server = services(request).authenticator
    return reply(await _called_with(request, server, account_tokens.access_token, seconds))


async def generate_id_token(request: Request) -> Reply:
    asked = await read_message(request, GenerateIdTokenRequest)
    _refuse_delegates(asked.delegates)
    server = services(request).authenticator
    return reply(await _called_with(request, server, account_tokens.identity_token, asked.audience))


def _refuse_delegates(delegates: list[str]) -> None:
    if delegates:
        raise Unimplemented(
            "delegates: a chain of accounts is not built; give the caller the role on the account itself."
        )


async def create_key(request: Request) -> Reply:
    asked = await read_message(request, CreateServiceAccountKeyRequest)
    row, made = await _called(request, accounts.create_key, asked.valid_after_time, asked.valid_before_time)
    file = json.dumps(service_accounts.key_file(made, services(request).authenticator.addresses[0]), indent=2)
    whole = {"privateKeyType": "TYPE_GOOGLE_CREDENTIALS_FILE", "privateKeyData": b64encode(file.encode()).decode()}
    return reply({**_key(row), **whole})


async def list_keys(request: Request) -> Reply:
    found = await _called(request, accounts.list_keys)
    return reply({"keys": [_key(row) for row in found]} if found else {})


async def get_key(request: Request) -> Reply:
    return reply(_key(await _called(request, accounts.get_key, request.path_params["key"])))


async def delete_key(request: Request) -> Reply:
    await _called(request, accounts.delete_key, request.path_params["key"])
    return reply({})


def _account(row: AnyRow) -> dict[str, Any]:
    project = row.email.partition("@")[2].partition(".")[0]
    return {
        "name": f"projects/{project}/serviceAccounts/{row.email}",
        "projectId": project,
        "uniqueId": row.unique_id,
        "email": row.email,
        "displayName": row.display_name,
        "oauth2ClientId": row.unique_id,
        **({"disabled": True} if row.disabled else {}),
    }


def _key(row: AnyRow) -> dict[str, Any]:
    project = row.email.partition("@")[2].partition(".")[0]
    return {
        "name": f"projects/{project}/serviceAccounts/{row.email}/keys/{row.id}",
        "keyAlgorithm": "KEY_ALG_RSA_2048",
        "validAfterTime": timestamp(row.valid_after or row.create_time),
        "validBeforeTime": timestamp(row.expire_time) if row.expire_time is not None else FOREVER,
        "keyType": "USER_MANAGED",
        "keyOrigin": "GOOGLE_PROVIDED",
        **({"disabled": True} if row.disabled else {}),
    }


ALL = "/v1/projects/{project}/serviceAccounts"
ONE = f"{ALL}/{{account}}"
KEYS = f"{ONE}/keys"
KEY = f"{KEYS}/{{key}}"
A, K = accounts.ACCOUNTS, accounts.KEYS
NOTHING = {"type": "object"}
ROUTES = [
    Route(
        "POST", ALL, create, f"{A}.create", "Make a service account", CreateServiceAccountRequest, ServiceAccountMessage
    ),
    Route("GET", ALL, list_, f"{A}.list", "List service accounts", query=("page_size", "page_token")),
    Route("GET", ONE, get, f"{A}.get", "Get a service account", response=ServiceAccountMessage),
    Route("DELETE", ONE, delete, f"{A}.delete", "Delete a service account, its keys and its rights"),
    Route(
        "POST", f"{ONE}:disable", _switch(accounts.switch, disabled=True), f"{A}.disable",
        "Disable a service account", NOTHING,
    ),
    Route(
        "POST", f"{ONE}:enable", _switch(accounts.switch, disabled=False), f"{A}.enable",
        "Enable a service account", NOTHING,
    ),
    Route(
        "POST", f"{ONE}:generateAccessToken", generate_access_token, f"{A}.getAccessToken",
        "Make a short-lived access token of an account", GenerateAccessTokenRequest,
    ),
    Route(
        "POST", f"{ONE}:generateIdToken", generate_id_token, f"{A}.getOpenIdToken",
        "Make an identity token of an account", GenerateIdTokenRequest,
    ),
    Route("POST", KEYS, create_key, f"{K}.create", "Make a key", CreateServiceAccountKeyRequest, ServiceAccountKey),
    Route("GET", KEYS, list_keys, f"{K}.list", "List the keys of an account", query=("key_types",)),
    Route(
        "GET",
        KEY,
        get_key,
        f"{K}.get",
        "Get a key, less its private half",
        response=ServiceAccountKey,
        query=("public_key_type",),
    ),
    Route("DELETE", KEY, delete_key, f"{K}.delete", "Delete a key"),
    Route(
        "POST", f"{KEY}:disable", _switch(accounts.switch_key, "key", disabled=True), f"{K}.disable",
        "Disable a key", NOTHING,
    ),
    Route(
        "POST", f"{KEY}:enable", _switch(accounts.switch_key, "key", disabled=False), f"{K}.enable",
        "Enable a key", NOTHING,
    ),
]  # fmt: skip
