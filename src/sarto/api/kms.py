"""Key rings, keys and versions, in the form of Cloud KMS."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pydantic.alias_generators import to_camel
from starlette.requests import Request

from sarto.api.http.requests import page, parent, query, read_json, resource_name
from sarto.api.http.responses import Reply, listing, reply
from sarto.api.http.routing import LOCATION, PAGE, Handler, Route
from sarto.api.http.services import in_thread, principal, services
from sarto.control.keys import kms
from sarto.errors import InvalidArgument
from sarto.storage.encryption.key_service import KeyName

RINGS = f"{LOCATION}/keyRings"
RING = f"{RINGS}/{{ring}}"
KEYS = f"{RING}/cryptoKeys"
KEY = f"{KEYS}/{{key}}"
VERSIONS = f"{KEY}/cryptoKeyVersions"
VERSION = f"{VERSIONS}/{{version}}"


def _one(function: Callable[..., Any], behind: str = "") -> Handler:
    """A handler that calls `function` for the resource of the path, or for its parent if `behind` is a collection in
    it."""

    async def one(request: Request) -> Reply:
        await _body(request)
        return reply(await _call(request, function, _name(request, behind)))

    return one


def _all(collection: str, function: Callable[..., Any]) -> Handler:
    async def list_page(request: Request) -> Reply:
        name = _name(request, f"/{collection}")
        return listing(collection, await _call(request, function, name, *page(request)))

    return list_page


async def create_ring(request: Request) -> Reply:
    await _body(request)
    return reply(await _call(request, kms.create_ring, parent(request), query(request).get("key_ring_id", "")))


async def list_rings(request: Request) -> Reply:
    return listing("keyRings", await _call(request, kms.list_rings, parent(request, wildcard=True), *page(request)))


async def create_key(request: Request) -> Reply:
    body, name = await _body(request), _name(request, "/cryptoKeys")
    return reply(await _call(request, kms.create_key, name, query(request).get("crypto_key_id", ""), body))


async def update_key(request: Request) -> Reply:
    body, name = await _body(request), _name(request)
    return reply(await _call(request, kms.update_key, name, body, _mask(request)))


async def set_primary(request: Request) -> Reply:
    body, name = await _body(request), _name(request)
    return reply(await _call(request, kms.set_primary, name, str(body.get("cryptoKeyVersionId", ""))))


async def update_version(request: Request) -> Reply:
    body, name = await _body(request), _name(request)
    if _mask(request) != ["state"]:
        raise InvalidArgument.field("update_mask", "Only state can be changed; write updateMask=state.")
    return reply(await _call(request, kms.set_state, name, str(body.get("state", ""))))


async def _call(request: Request, function: Callable[..., Any], *args: Any) -> Any:
    return await in_thread(request, function, services(request).keys, principal(request), *args)


async def _body(request: Request) -> dict[str, Any]:
    body = await read_json(request)
    if not isinstance(body, dict):
        raise InvalidArgument("The request body must be a JSON object.")
    return body


def _name(request: Request, behind: str = "") -> KeyName:
    return KeyName.parse(resource_name(request).removesuffix(behind))


def _mask(request: Request) -> list[str]:
    fields = [to_camel(part.strip()) for part in query(request).get("update_mask", "").split(",") if part.strip()]
    if not fields:
        raise InvalidArgument.field("update_mask", "Required field is not set.")
    return fields


ROUTES = [
    Route(
        "POST", RINGS, create_ring, "cloudkms.keyRings.create", "Create a key ring",
        {"type": "object"}, query=("key_ring_id",),
    ),
    Route("GET", RINGS, list_rings, "cloudkms.keyRings.list", "List key rings", query=PAGE),
    Route("GET", RING, _one(kms.get_ring), "cloudkms.keyRings.get", "Get a key ring"),
    Route(
        "POST", KEYS, create_key, "cloudkms.cryptoKeys.create", "Create a key with its first version",
        {"type": "object"}, query=("crypto_key_id",),
    ),
    Route("GET", KEYS, _all("cryptoKeys", kms.list_keys), "cloudkms.cryptoKeys.list", "List keys", query=PAGE),
    Route("GET", KEY, _one(kms.get_key), "cloudkms.cryptoKeys.get", "Get a key"),
    Route(
        "PATCH", KEY, update_key, "cloudkms.cryptoKeys.update", "Change a key's labels or rotation",
        {"type": "object"}, query=("update_mask",),
    ),
    Route(
        "POST", f"{KEY}:updatePrimaryVersion", set_primary, "cloudkms.cryptoKeys.update",
        "Set the primary version of a key", {"type": "object"},
    ),
    Route(
        "POST", VERSIONS, _one(kms.create_version, "/cryptoKeyVersions"), "cloudkms.cryptoKeyVersions.create",
        "Add a version to a key", {"type": "object"},
    ),
    Route(
        "GET", VERSIONS, _all("cryptoKeyVersions", kms.list_versions), "cloudkms.cryptoKeyVersions.list",
        "List a key's versions", query=PAGE,
    ),
    Route("GET", VERSION, _one(kms.get_version), "cloudkms.cryptoKeyVersions.get", "Get a version of a key"),
    Route(
        "PATCH", VERSION, update_version, "cloudkms.cryptoKeyVersions.update", "Enable or disable a version",
        {"type": "object"}, query=("update_mask",),
    ),
    Route(
        "POST", f"{VERSION}:destroy", _one(kms.destroy), "cloudkms.cryptoKeyVersions.destroy",
        "Schedule the destruction of a version's material", {"type": "object"},
    ),
    Route(
        "POST", f"{VERSION}:restore", _one(kms.restore), "cloudkms.cryptoKeyVersions.restore",
        "Cancel a scheduled destruction", {"type": "object"},
    ),
]  # fmt: skip
