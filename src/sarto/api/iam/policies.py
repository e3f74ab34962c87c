"""The policy methods of every resource with a policy, in the form of its Google service."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pydantic import Field
from starlette.requests import Request
from starlette.types import ASGIApp

from sarto.api.gcs.bucket_call import json_failure, opened, sees
from sarto.api.http.requests import read_message
from sarto.api.http.responses import Reply, reply
from sarto.api.http.routing import LOCATION, SIGNED_IN, Handler, Route
from sarto.api.http.services import in_thread, principal, services
from sarto.control.access import policies
from sarto.control.access.policies import Bindings, Target
from sarto.errors import InvalidArgument, SartoError
from sarto.names import check_id, check_location
from sarto.schema.wire import Int32, Message, Text
from sarto.storage.buckets.objects import NoSuchBucket


class Binding(Message):
    role: Text = ""
    members: list[Text] = Field(default_factory=list)
    condition: dict[str, Any] | None = None


class Policy(Message):
    version: Int32 = 1
    etag: Text = ""
    bindings: list[Binding] = Field(default_factory=list)
    kind: Text = ""
    resource_id: Text = ""


class SetIamPolicyRequest(Message):
    policy: Policy | None = None
    update_mask: Text = ""


class GetIamPolicyRequest(Message):
    options: dict[str, Any] | None = None


class TestIamPermissionsRequest(Message):
    permissions: list[Text] = Field(default_factory=list)


class BucketPermissions(TestIamPermissionsRequest):
    kind: Text = ""
    resource_id: Text = ""


def _getter(target: Callable[[Request], Target]) -> Handler:
    async def get(request: Request) -> Reply:
        if request.method == "POST":
            await read_message(request, GetIamPolicyRequest)
        database, caller = services(request).database, principal(request)
        return reply(_written(*await in_thread(request, policies.get, database, caller, target(request))))

    return get


def _setter(target: Callable[[Request], Target]) -> Handler:
    async def set_policy(request: Request) -> Reply:
        body = await read_message(request, SetIamPolicyRequest)
        if body.policy is None:
            raise InvalidArgument.field("policy", "Required field is not set.")
        return reply(await _set(request, target(request), body.policy))

    return set_policy


def _tester(target: Callable[[Request], Target]) -> Handler:
    async def test(request: Request) -> Reply:
        body = await read_message(request, TestIamPermissionsRequest)
        return reply(await _test(request, target(request), body.permissions))

    return test


async def _set(request: Request, target: Target, policy: Policy) -> dict[str, Any]:
    for index, one in enumerate(policy.bindings):
        if one.condition:
            raise policies.refuse_condition(index)
    bindings = [(one.role, list(one.members)) for one in policy.bindings]
    database, caller = services(request).database, principal(request)
    return _written(*await in_thread(request, policies.set_policy, database, caller, target, bindings, policy.etag))


async def _test(request: Request, target: Target, permissions: list[str]) -> dict[str, Any]:
    database, caller = services(request).database, principal(request)
    held = await in_thread(request, policies.test, database, caller, target, permissions)
    return {"permissions": held} if held else {}


def _written(bindings: Bindings, etag: str) -> dict[str, Any]:
    rows = [{"role": role, "members": members} for role, members in bindings.items()]
    return {"version": 1, "etag": etag, **({"bindings": rows} if rows else {})}


def _project(request: Request) -> Target:
    return Target("resourcemanager.projects", request.path_params["project"])


def account_project(project: str, email: str) -> str:
    """The project of the path; `-` means the project in the account's address."""
    return email.partition("@")[2].partition(".")[0] if project == "-" else project


def _account(request: Request) -> Target:
    email = request.path_params["account"]
    project = account_project(request.path_params["project"], email)
    return Target("iam.serviceAccounts", project, f"serviceAccounts/{email}")


def _located(prefix: str, *collections: str) -> Callable[[Request], Target]:
    """A resource under a location, by the collections of its name; path values have the same names."""

    def target(request: Request) -> Target:
        values = request.path_params
        parts = [f"{one}/{check_id(values[one])}" for one in collections]
        return Target(prefix, values["project"], "/".join([f"locations/{check_location(values['location'])}", *parts]))

    return target


def _methods(path: str, target: Callable[[Request], Target], prefix: str, what: str, get: str = "POST") -> list[Route]:
    return [
        Route(
            get, f"{path}:getIamPolicy", _getter(target), f"{prefix}.getIamPolicy", f"The policy of {what}",
            GetIamPolicyRequest if get == "POST" else None, Policy,
            query=() if get == "POST" else ("options.requested_policy_version",),
        ),
        Route(
            "POST", f"{path}:setIamPolicy", _setter(target), f"{prefix}.setIamPolicy", f"Replace the policy of {what}",
            SetIamPolicyRequest, Policy,
        ),
        Route(
            "POST", f"{path}:testIamPermissions", _tester(target), SIGNED_IN,
            f"Test your permissions on {what}", TestIamPermissionsRequest, TestIamPermissionsRequest,
        ),
    ]  # fmt: skip


async def _of_bucket(request: Request) -> Target:
    """The bucket of a path. Raises NoSuchBucket for one that is missing or another project's, like every storage
    method."""
    name = request.path_params["bucket"]
    bucket = await in_thread(request, services(request).buckets.bucket, name)
    if not await in_thread(request, sees, request, bucket):
        raise NoSuchBucket
    return Target("storage.buckets", bucket.project, f"buckets/{name}")


def _bucket(act: Callable[[Request, Target], Any]) -> Handler:
    async def enter(request: Request) -> ASGIApp:
        try:
            target = await _of_bucket(request)
            from_storage = await act(request, target)
            named = f"projects/_/{target.on}"
            return reply({"kind": "storage#policy", "resourceId": named, **from_storage})
        except SartoError as error:
            return json_failure(error)

    return enter


async def _get_bucket(request: Request, target: Target) -> dict[str, Any]:
    database, caller = services(request).database, principal(request)
    return _written(*await in_thread(request, policies.get, database, caller, target))


async def _set_bucket(request: Request, target: Target) -> dict[str, Any]:
    await in_thread(request, opened, request, request.path_params["bucket"], "storage.buckets.setIamPolicy")
    return await _set(request, target, await read_message(request, Policy))


async def _test_bucket(request: Request, target: Target) -> dict[str, Any]:
    permissions = [value for name, value in request.query_params.multi_items() if name == "permissions"]
    return {"kind": "storage#testIamPermissionsResponse", **await _test(request, target, permissions)}


RING = f"{LOCATION}/keyRings/{{keyRings}}"
BUCKET = "/storage/v1/b/{bucket}/iam"
ROUTES = [
    *_methods("/{api}/projects/{project}", _project, "resourcemanager.projects", "a project"),
    *_methods("/v3/projects/{project}", _project, "resourcemanager.projects", "a project"),
    *_methods("/v1/projects/{project}/serviceAccounts/{account}", _account, "iam.serviceAccounts", "an account"),
    *(
        route
        for kind in ("models", "endpoints")
        for route in _methods(
            f"{LOCATION}/{kind}/{{{kind}}}", _located(f"aiplatform.{kind}", kind), f"aiplatform.{kind}",
            f"one of the {kind}",
        )
    ),
    *_methods(RING, _located("cloudkms.keyRings", "keyRings"), "cloudkms.keyRings", "a key ring", "GET"),
    *_methods(
        f"{RING}/cryptoKeys/{{cryptoKeys}}", _located("cloudkms.cryptoKeys", "keyRings", "cryptoKeys"),
        "cloudkms.cryptoKeys", "a key", "GET",
    ),
    Route(
        "GET", BUCKET, _bucket(_get_bucket), "storage.buckets.getIamPolicy", "The policy of a bucket",
        response=Policy, query=None, errors="StorageError",
    ),
    Route(
        "PUT", BUCKET, _bucket(_set_bucket), "storage.buckets.setIamPolicy", "Replace the policy of a bucket",
        Policy, Policy, query=None, errors="StorageError",
    ),
    Route(
        "GET", f"{BUCKET}/testPermissions", _bucket(_test_bucket), SIGNED_IN,
        "Test your permissions on a bucket", response=BucketPermissions, query=None,
        errors="StorageError",
    ),
]  # fmt: skip
