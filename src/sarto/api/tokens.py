"""The token endpoint, the external-account exchange, the keys of identity tokens, and the metadata-server paths that
some client libraries insist on. All of it without a bearer: this is where bearers come from."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import parse_qsl

import orjson
from starlette.requests import Request

from sarto.api.http import Reply, in_thread, query, read_body, read_json, reply, services
from sarto.control import projects
from sarto.control.auth import InvalidGrant
from sarto.errors import InvalidArgument, NotFound, PermissionDenied

MAX_FORM_BYTES = 64 * 1024
FLAVOR = (b"metadata-flavor", b"Google")
SCOPE = "https://www.googleapis.com/auth/cloud-platform"


async def token(request: Request) -> Reply:
    """JWT-bearer grant: a signed assertion for an access token, and an identity token where one is asked for."""
    return await _oauth(request, services(request).authenticator.grant)


async def exchange(request: Request) -> Reply:
    """Token exchange of external-account clients."""
    return await _oauth(request, services(request).authenticator.exchange)


async def certificates(request: Request) -> Reply:
    return reply(services(request).authenticator.public_keys())


async def _oauth(request: Request, grant: Callable[[Mapping[str, str]], dict[str, Any]]) -> Reply:
    form = await _form(request)
    try:
        return Reply(orjson.dumps(await in_thread(request, grant, form)), headers=[(b"cache-control", b"no-store")])
    except InvalidGrant as error:
        body = {"error": error.oauth_code, "error_description": error.message}
        return Reply(orjson.dumps(body), status=400, headers=[(b"cache-control", b"no-store")])


async def _form(request: Request) -> dict[str, str]:
    """The fields of a form or of a JSON object."""
    if request.headers.get("content-type", "").startswith("application/json"):
        value = await read_json(request)
        if not isinstance(value, dict):
            raise InvalidArgument("The body must be a JSON object or a form.")
        return {str(name): str(text) for name, text in value.items()}
    body = await read_body(request, MAX_FORM_BYTES)
    return dict(parse_qsl(body.decode("utf-8", "replace")))


async def metadata_root(request: Request) -> Reply:
    """What client libraries ping to find out whether there is a metadata server."""
    _check_caller(request)
    return _text("computeMetadata/")


async def metadata(request: Request) -> Reply:
    """The few paths that client libraries read, for the administrator's account."""
    _check_caller(request)
    served = services(request)
    email = served.metadata_account
    path = request.path_params.get("path", "").strip("/")
    account = path.removeprefix("instance/service-accounts/")
    if account != path and account.split("/")[0] in ("default", email):
        return await _account(request, email, account.partition("/")[2])
    key = await in_thread(request, served.authenticator.newest_key, email)
    project = await in_thread(request, projects.find, served.database, key.account.project)
    assert project is not None, "an account has a project"
    values = {
        "": "instance/\nproject/\n",
        "instance": "service-accounts/\nzone\n",
        "instance/service-accounts": f"default/\n{email}/\n",
        "instance/zone": f"projects/{project.number}/zones/us-central1-a",
        "project/project-id": project.id,
        "project/numeric-project-id": project.number,
        "universe/universe-domain": "googleapis.com",
        "universe/universe_domain": "googleapis.com",
    }
    if path not in values:
        raise NotFound(f"The metadata server has no {path}")
    return _text(values[path])


async def _account(request: Request, email: str, what: str) -> Reply:
    authenticator = services(request).authenticator
    if what == "token":
        key = await in_thread(request, authenticator.newest_key, email)
        return Reply(orjson.dumps(authenticator.issue(key)), headers=[FLAVOR])
    if what == "identity":
        audience = query(request).get("audience", "")
        if not audience:
            raise InvalidArgument.field("audience", "Required field is not set.")
        key = await in_thread(request, authenticator.newest_key, email)
        return _text(await in_thread(request, authenticator.identity_token, key.account, audience))
    if what == "" and query(request).get("recursive", "").lower() == "true":
        body = {"aliases": ["default"], "email": email, "scopes": [SCOPE]}
        return Reply(orjson.dumps(body), headers=[FLAVOR])
    texts = {"": "aliases\nemail\nidentity\nscopes\ntoken\n", "email": email, "scopes": SCOPE, "aliases": "default"}
    if what not in texts:
        raise NotFound(f"The metadata server has no {what} of an account")
    return _text(texts[what])


def _check_caller(request: Request) -> None:
    """Only for programs on this machine that mean to ask: a browser cannot send the header, a proxy adds the other."""
    if not services(request).metadata_account:
        raise NotFound("The metadata server is off; the setting metadata_server = true turns it on.")
    address = ipaddress.ip_address(request.client.host) if request.client else None
    if address is None or not address.is_loopback or "x-forwarded-for" in request.headers:
        raise PermissionDenied("The metadata server answers callers on this machine only.")
    if request.headers.get("metadata-flavor") != "Google":
        raise PermissionDenied("Missing required header Metadata-Flavor: Google")


def _text(text: str) -> Reply:
    return Reply(text.encode(), content_type=b"application/text", headers=[FLAVOR])
