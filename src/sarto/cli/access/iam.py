"""`sarto iam …`: service accounts, their keys, and policies."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import typer

from sarto.cli import output
from sarto.cli.client import ApiError, Client
from sarto.cli.options import AsJson, client
from sarto.errors import InvalidArgument

app = typer.Typer(help="Service accounts, their keys, and policies.", no_args_is_help=True)
policy = typer.Typer(help="Roles on a resource.", no_args_is_help=True)
accounts = typer.Typer(help="Service accounts.", no_args_is_help=True)
keys = typer.Typer(help="Keys of service accounts.", no_args_is_help=True)
app.add_typer(policy, name="policy")
app.add_typer(accounts, name="accounts")
app.add_typer(keys, name="keys")

ON = "Resource: gs://BUCKET, an account's address, projects/P/locations/L/models/ID; default: the project."
On = Annotated[str, typer.Option("--on", help=ON, metavar="RESOURCE")]
Member = Annotated[str, typer.Argument(help="serviceAccount:EMAIL, user:EMAIL or principal://ISSUER/subject/ID.")]
Role = Annotated[str, typer.Argument(help="Such as roles/aiplatform.user.")]
Email = Annotated[str, typer.Argument(help="The account's address.")]
KeyId = Annotated[str, typer.Argument(help="The key's id.")]
ATTEMPTS = 5


@policy.command("get")
def get_policy(context: typer.Context, on: On = "") -> None:
    """Show the policy of a resource, as JSON."""
    with client(context) as api:
        output.print_json(_read(api, on))


@app.command()
def bind(context: typer.Context, member: Member, role: Role, on: On = "") -> None:
    """Give a member a role on a resource."""
    with client(context) as api:
        _change(api, on, role, member, is_given=True)
    output.console().print(f"{member} has {role}")


@app.command()
def unbind(context: typer.Context, member: Member, role: Role, on: On = "") -> None:
    """Take a role from a member."""
    with client(context) as api:
        _change(api, on, role, member, is_given=False)
    output.console().print(f"{member} no longer has {role} here")


@app.command()
def test(
    context: typer.Context,
    permissions: Annotated[list[str], typer.Argument(help="Such as aiplatform.tuningJobs.create.")],
    on: On = "",
) -> None:
    """Print which of the permissions the caller has on a resource."""
    with client(context) as api:
        if on.startswith("gs://"):
            answer = api.get(f"{_path(api, on)}/testPermissions?" + "&".join(f"permissions={p}" for p in permissions))
        else:
            answer = api.post(f"{_path(api, on)}:testIamPermissions", {"permissions": permissions})
    for permission in answer.get("permissions", ()):
        print(permission)


@accounts.command("create")
def create_account(
    context: typer.Context,
    account: Annotated[str, typer.Argument(help="Id: 6 to 30 lower case letters, digits and hyphens.")],
    display_name: Annotated[str, typer.Option(help="A name for people.")] = "",
    as_json: AsJson = False,
) -> None:
    """Create a service account; it has no rights until a role is bound."""
    with client(context) as api:
        body = {"accountId": account, "serviceAccount": {"displayName": display_name}}
        resource = api.post(_accounts(api), body)
    if as_json:
        output.print_json(resource)
    else:
        output.console().print(f"Created {resource['email']}")


@accounts.command("list")
def list_accounts(context: typer.Context, as_json: AsJson = False) -> None:
    """The project's service accounts."""
    with client(context) as api:
        items = api.get(_accounts(api)).get("accounts", [])
    if as_json:
        output.print_json(items)
        return
    rows = (
        {"EMAIL": one["email"], "NAME": one["displayName"], "DISABLED": "yes" if one.get("disabled") else ""}
        for one in items
    )
    output.print_rows(rows, ("EMAIL", "NAME", "DISABLED"), "No service accounts.")


@accounts.command("disable")
def disable_account(context: typer.Context, email: Email) -> None:
    """Disable an account: its keys and tokens are invalid until it is enabled again."""
    with client(context) as api:
        api.post(f"{_accounts(api)}/{email}:disable")
    output.console().print(f"Disabled {email}")


@accounts.command("enable")
def enable_account(context: typer.Context, email: Email) -> None:
    """Enable a disabled account."""
    with client(context) as api:
        api.post(f"{_accounts(api)}/{email}:enable")
    output.console().print(f"Enabled {email}")


@accounts.command("delete")
def delete_account(context: typer.Context, email: Email) -> None:
    """Delete an account with its keys and rights."""
    with client(context) as api:
        api.delete(f"{_accounts(api)}/{email}")
    output.console().print(f"Deleted {email}")


@keys.command("create")
def create_key(
    context: typer.Context,
    email: Email,
    file: Annotated[Path, typer.Argument(help="Key file to write, for its owner alone.")],
    days: Annotated[float, typer.Option(help="Days until it expires; 0: never.", min=0)] = 0,
) -> None:
    """Create a key and write its key file. To rotate: create one, distribute it, disable the old one, delete it."""
    if file.exists():
        raise InvalidArgument(f"{file} exists already; name a new file.")
    body = {}
    if days:
        body["validBeforeTime"] = (datetime.now(UTC) + timedelta(days=days)).strftime("%Y-%m-%dT%H:%M:%SZ")
    with client(context) as api:
        key = api.post(f"{_accounts(api)}/{email}/keys", body)
    content = json.loads(base64.b64decode(key["privateKeyData"]))
    from sarto.control.access.account_store import write_private  # loads the database, which other commands need not

    write_private(file, (json.dumps(content, indent=2) + "\n").encode())
    output.console().print(f"Wrote {file}, key {content['private_key_id']}, good until {key['validBeforeTime']}")


@keys.command("list")
def list_keys(context: typer.Context, email: Email, as_json: AsJson = False) -> None:
    """An account's keys."""
    with client(context) as api:
        items = api.get(f"{_accounts(api)}/{email}/keys").get("keys", [])
    if as_json:
        output.print_json(items)
        return
    rows = (
        {
            "KEY": output.short_id(one["name"]),
            "FROM": one["validAfterTime"],
            "UNTIL": one["validBeforeTime"],
            "DISABLED": "yes" if one.get("disabled") else "",
        }
        for one in items
    )
    output.print_rows(rows, ("KEY", "FROM", "UNTIL", "DISABLED"), "No keys.")


@keys.command("disable")
def disable_key(context: typer.Context, email: Email, key: KeyId) -> None:
    """Disable a key: it and its tokens are invalid until it is enabled again."""
    with client(context) as api:
        api.post(f"{_accounts(api)}/{email}/keys/{key}:disable")
    output.console().print(f"Disabled {key}")


@keys.command("enable")
def enable_key(context: typer.Context, email: Email, key: KeyId) -> None:
    """Enable a disabled key."""
    with client(context) as api:
        api.post(f"{_accounts(api)}/{email}/keys/{key}:enable")
    output.console().print(f"Enabled {key}")


@keys.command("delete")
def delete_key(context: typer.Context, email: Email, key: KeyId) -> None:
    """Delete a key permanently."""
    with client(context) as api:
        api.delete(f"{_accounts(api)}/{email}/keys/{key}")
    output.console().print(f"Deleted {key}")


def _accounts(api: Client) -> str:
    return f"/v1/projects/{api.project}/serviceAccounts"


def _path(api: Client, on: str) -> str:
    """The path of a resource's policy methods."""
    if on.startswith("gs://"):
        return f"/storage/v1/b/{on.removeprefix('gs://').strip('/')}/iam"
    if "@" in on and "/" not in on:
        return f"/v1/projects/-/serviceAccounts/{on}"
    return f"/v1/{on}" if on else f"/v1/projects/{api.project}"


def _read(api: Client, on: str) -> dict[str, Any]:
    path = _path(api, on)
    if on.startswith("gs://"):
        policy: dict[str, Any] = api.get(path)
    elif "/keyRings/" in on:
        policy = api.get(f"{path}:getIamPolicy")
    else:
        policy = api.post(f"{path}:getIamPolicy")
    return policy


def _change(api: Client, on: str, role: str, member: str, *, is_given: bool) -> None:
    """Read, change, and write with the etag; repeated when another caller wrote meanwhile."""
    for attempt in range(ATTEMPTS):
        policy = _read(api, on)
        rows = {row["role"]: set(row["members"]) for row in policy.get("bindings", ())}
        members = rows.setdefault(role, set())
        if is_given:
            members.add(member)
        elif member not in members:
            raise InvalidArgument(f"{member} does not have {role} on this resource.")
        else:
            members.discard(member)
        bindings = [{"role": one, "members": sorted(members)} for one, members in rows.items() if members]
        changed = {"bindings": bindings, "etag": policy["etag"]}
        try:
            if on.startswith("gs://"):
                api.request("PUT", _path(api, on), json=changed)
            else:
                api.post(f"{_path(api, on)}:setIamPolicy", {"policy": changed})
            return
        except ApiError as error:
            if error.answered_http_status != 409 or attempt == ATTEMPTS - 1:
                raise
