"""Service accounts and their keys, in the form of the IAM service."""

from __future__ import annotations

import json
from base64 import b64encode
from typing import Any

from pydantic import Field
from starlette.requests import Request

from sarto.api.http.requests import read_message
from sarto.api.http.responses import Reply, reply
from sarto.api.http.routing import PAGE, Handler, Route
from sarto.api.http.services import in_thread, principal, services
from sarto.api.iam.policies import account_project
from sarto.api.iam.tokens import SCOPE
from sarto.api.vertex.operations import read_timeout
from sarto.control.access import account_store, account_tokens, service_accounts
from sarto.control.access.authentication import MAX_LIFE_SECONDS, Authenticator
from sarto.control.aip.times import timestamp
from sarto.control.context import AnyRow
from sarto.errors import InvalidArgument, Unimplemented
from sarto.schema.wire import Boolean, Message, Text, Timestamp
from sarto.storage.database.database import Database

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
    """Google's fields, and the times between which the key is valid."""

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
    """`scope` is required and ignored: policies decide the rights of a token."""

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
    """Call `function(database, principal, project, email, …)` for the account of the path."""
    return await _called_with(request, services(request).database, function, *more)


async def _called_with(request: Request, served: Database | Authenticator, function: Any, *more: Any) -> Any:
    email = request.path_params["account"]
    project = account_project(request.path_params["project"], email)
    return await in_thread(request, function, served, principal(request), project, email, *more)


async def create(request: Request) -> Reply:
    body = await read_message(request, CreateServiceAccountRequest)
    name = body.service_account.display_name if body.service_account else ""
    project = request.path_params["project"]
    database, caller = services(request).database, principal(request)
    return reply(
        _account(await in_thread(request, service_accounts.create, database, caller, project, body.account_id, name))
    )


async def list_accounts(request: Request) -> Reply:
    project = request.path_params["project"]
    accounts = await in_thread(
        request, service_accounts.list_accounts, services(request).database, principal(request), project
    )
    return reply({"accounts": [_account(row) for row in accounts]} if accounts else {})


async def get(request: Request) -> Reply:
    return reply(_account(await _called(request, service_accounts.get)))


async def delete(request: Request) -> Reply:
    await _called(request, service_accounts.delete)
    return reply({})


def _switch(function: Any, *parts: str, disabled: bool) -> Handler:
    """Disable or enable an account, or the resource of `parts` in the path."""

    async def switch(request: Request) -> Reply:
        await _called(request, function, *(request.path_params[part] for part in parts), disabled)
        return reply({})

    return switch


async def generate_access_token(request: Request) -> Reply:
    body = await read_message(request, GenerateAccessTokenRequest)
    _refuse_delegates(body.delegates)
    if not body.scope:
        raise InvalidArgument.field("scope", f"Required field is not set; give {SCOPE}.")
    seconds = read_timeout(body.lifetime, "lifetime") if body.lifetime else float(MAX_LIFE_SECONDS)
    server = services(request).authenticator
    return reply(await _called_with(request, server, account_tokens.access_token, seconds))


async def generate_id_token(request: Request) -> Reply:
    body = await read_message(request, GenerateIdTokenRequest)
    _refuse_delegates(body.delegates)
    server = services(request).authenticator
    return reply(await _called_with(request, server, account_tokens.identity_token, body.audience))


def _refuse_delegates(delegates: list[str]) -> None:
    if delegates:
        raise Unimplemented(
            "delegates: a chain of accounts is not supported; give the caller the role on the account itself."
        )


async def create_key(request: Request) -> Reply:
    body = await read_message(request, CreateServiceAccountKeyRequest)
    row, key = await _called(
        request,
        service_accounts.create_key,
        body.valid_after_time,
        body.valid_before_time,
        services(request).max_key_days,
    )
    file = json.dumps(account_store.key_file(key, services(request).authenticator.addresses[0]), indent=2)
    whole = {"privateKeyType": "TYPE_GOOGLE_CREDENTIALS_FILE", "privateKeyData": b64encode(file.encode()).decode()}
    return reply({**_key(row), **whole})


async def list_keys(request: Request) -> Reply:
    keys = await _called(request, service_accounts.list_keys)
    return reply({"keys": [_key(row) for row in keys]} if keys else {})


async def get_key(request: Request) -> Reply:
    return reply(_key(await _called(request, service_accounts.get_key, request.path_params["key"])))


async def delete_key(request: Request) -> Reply:
    await _called(request, service_accounts.delete_key, request.path_params["key"])
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
A, K = service_accounts.ACCOUNTS, service_accounts.KEYS
NOTHING = {"type": "object"}
ROUTES = [
    Route(
        "POST", ALL, create, f"{A}.create", "Create a service account", CreateServiceAccountRequest,
        ServiceAccountMessage,
    ),
    Route("GET", ALL, list_accounts, f"{A}.list", "List service accounts", query=PAGE),
    Route("GET", ONE, get, f"{A}.get", "Get a service account", response=ServiceAccountMessage),
    Route("DELETE", ONE, delete, f"{A}.delete", "Delete a service account, its keys and its rights"),
    Route(
        "POST", f"{ONE}:disable", _switch(service_accounts.switch, disabled=True), f"{A}.disable",
        "Disable a service account", NOTHING,
    ),
    Route(
        "POST", f"{ONE}:enable", _switch(service_accounts.switch, disabled=False), f"{A}.enable",
        "Enable a service account", NOTHING,
    ),
    Route(
        "POST", f"{ONE}:generateAccessToken", generate_access_token, f"{A}.getAccessToken",
        "Create a short-lived access token for an account", GenerateAccessTokenRequest,
    ),
    Route(
        "POST", f"{ONE}:generateIdToken", generate_id_token, f"{A}.getOpenIdToken",
        "Create an identity token for an account", GenerateIdTokenRequest,
    ),
    Route("POST", KEYS, create_key, f"{K}.create", "Create a key", CreateServiceAccountKeyRequest, ServiceAccountKey),
    Route("GET", KEYS, list_keys, f"{K}.list", "List the keys of an account", query=("key_types",)),
    Route(
        "GET",
        KEY,
        get_key,
        f"{K}.get",
        "Get a key without its private half",
        response=ServiceAccountKey,
        query=("public_key_type",),
    ),
    Route("DELETE", KEY, delete_key, f"{K}.delete", "Delete a key"),
    Route(
        "POST", f"{KEY}:disable", _switch(service_accounts.switch_key, "key", disabled=True), f"{K}.disable",
        "Disable a key", NOTHING,
    ),
    Route(
        "POST", f"{KEY}:enable", _switch(service_accounts.switch_key, "key", disabled=False), f"{K}.enable",
        "Enable a key", NOTHING,
    ),
]  # fmt: skip
