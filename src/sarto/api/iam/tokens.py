"""Token endpoints: `/token`, the external-account exchange, the public keys of identity tokens, and the metadata-server
paths that some client libraries need. None of them requires an access token."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import parse_qsl

import orjson
from starlette.requests import Request

from sarto.api.http.application import call_of
from sarto.api.http.callers import check_local
from sarto.api.http.requests import query, read_body, read_json
from sarto.api.http.responses import Reply, reply
from sarto.api.http.routing import PUBLIC, Route
from sarto.api.http.services import in_thread, services
from sarto.control.access import account_tokens, decisions, projects
from sarto.control.access.authentication import InvalidGrant
from sarto.errors import InvalidArgument, NotFound, PermissionDenied

MOST_FIELDS = 100
FLAVOR = (b"metadata-flavor", b"Google")
SCOPE = "https://www.googleapis.com/auth/cloud-platform"


async def token(request: Request) -> Reply:
    """JWT-bearer grant: a signed assertion for an access token, or for an identity token if one is requested."""
    return await _oauth(request, services(request).authenticator.grant, decisions.SIGN_IN)


async def exchange(request: Request) -> Reply:
    """Token exchange of external-account clients."""
    return await _oauth(request, services(request).authenticator.exchange, decisions.EXCHANGE)


async def certificates(request: Request) -> Reply:
    return reply(services(request).authenticator.public_keys())


async def _oauth(request: Request, grant: Callable[[Mapping[str, str]], dict[str, Any]], how: str) -> Reply:
    form = await _form(request)
    try:
        token = await in_thread(request, grant, form)
        await _signed_in(request, token, how)
        return Reply(orjson.dumps(token), headers=[(b"cache-control", b"no-store")])
    except InvalidGrant as error:
        services(request).audit_log.not_signed_in(call_of(request), how)
        body = {"error": error.oauth_code, "error_description": error.message}
        return Reply(orjson.dumps(body), status=400, headers=[(b"cache-control", b"no-store")])


async def _signed_in(request: Request, token: Mapping[str, Any], how: str) -> None:
    """Record the account of a new token."""
    who = await in_thread(request, services(request).authenticator.authenticate, token["access_token"])
    services(request).audit_log.signed_in(call_of(request), how, who)


async def _form(request: Request) -> dict[str, str]:
    """The fields of a form or of a JSON object; all are texts."""
    if request.headers.get("content-type", "").startswith("application/json"):
        value = await read_json(request)
        if not isinstance(value, dict):
            raise InvalidArgument("The body must be a JSON object or a form.")
        other = next((name for name, text in value.items() if not isinstance(text, str)), None)
        if other is not None:
            raise InvalidArgument.field(other, "Expected a string.")
        return value
    body = await read_body(request)
    try:
        return dict(parse_qsl(body.decode("utf-8", "replace"), max_num_fields=MOST_FIELDS))
    except ValueError:
        raise InvalidArgument(f"The form has more than {MOST_FIELDS} fields.") from None


async def metadata_root(request: Request) -> Reply:
    """The path that client libraries request to find a metadata server."""
    _check_caller(request)
    return _text("computeMetadata/")


async def metadata(request: Request) -> Reply:
    """The paths that client libraries read, for the account of the setting."""
    _check_caller(request)
    served = services(request)
    email = served.metadata_account
    path = request.path_params.get("path", "").strip("/")
    account = path.removeprefix("instance/service-accounts/")
    if account != path and account.split("/")[0] in ("default", email):
        return await _account(request, email, account.partition("/")[2])
    speaker = await in_thread(request, account_tokens.of_this_machine, served.authenticator, email)
    project = await in_thread(request, projects.find, served.database, speaker.project)
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
        raise NotFound(f"The metadata server has no {path}.")
    return _text(values[path])


async def _account(request: Request, email: str, what: str) -> Reply:
    authenticator = services(request).authenticator
    speaker = await in_thread(request, account_tokens.of_this_machine, authenticator, email)
    if what == "token":
        token = authenticator.issue_for(speaker, authenticator.token_seconds)
        await _signed_in(request, token, decisions.SIGN_IN)
        return Reply(orjson.dumps(token), headers=[FLAVOR])
    if what == "identity":
        audience = query(request).get("audience", "")
        if not audience:
            raise InvalidArgument.field("audience", "Required field is not set.")
        return _text(await in_thread(request, authenticator.identity_token, speaker, audience))
    if what == "" and query(request).get("recursive", "").lower() == "true":
        body = {"aliases": ["default"], "email": email, "scopes": [SCOPE]}
        return Reply(orjson.dumps(body), headers=[FLAVOR])
    texts = {"": "aliases\nemail\nidentity\nscopes\ntoken\n", "email": email, "scopes": SCOPE, "aliases": "default"}
    if what not in texts:
        raise NotFound(f"The metadata server has no {what} of an account.")
    return _text(texts[what])


def _check_caller(request: Request) -> None:
    """Accept only programs of the server's user on this machine, with the header that marks the request as intended."""
    if not services(request).metadata_account:
        raise NotFound("The metadata server is off; the setting metadata_server = ACCOUNT turns it on.")
    check_local(request.scope)
    if request.headers.get("metadata-flavor") != "Google":
        raise PermissionDenied("Missing required header Metadata-Flavor: Google.")


def _text(text: str) -> Reply:
    return Reply(text.encode(), content_type=b"application/text", headers=[FLAVOR])


METADATA = "/computeMetadata/v1"
OAUTH = "OAuthError"
ROUTES = [
    Route("POST", "/token", token, PUBLIC, "Exchange a signed assertion for an access token", errors=OAUTH),
    Route(
        "POST", "/sts/token", exchange, PUBLIC, "Exchange an external token for an access token", errors=OAUTH
    ),
    Route("GET", "/oauth2/v3/certs", certificates, PUBLIC, "Public keys of identity tokens"),
    Route("GET", METADATA, metadata, PUBLIC, "Metadata server", response="application/text", query=None),
    Route(
        "GET", f"{METADATA}/{{path=**}}", metadata, PUBLIC, "Metadata server",
        response="application/text", query=None,
    ),
]  # fmt: skip
