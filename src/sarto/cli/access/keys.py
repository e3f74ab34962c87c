"""`sarto kms keys …`: customer keys, which encrypt the files of jobs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from sarto.cli import output
from sarto.cli.client import ApiError, Client
from sarto.cli.options import AsJson, Home, client
from sarto.errors import InvalidArgument

app = typer.Typer(help="Customer keys.", no_args_is_help=True)
keys = typer.Typer(help="Keys: create, list, rotate, disable, enable, destroy, restore.", no_args_is_help=True)
app.add_typer(keys, name="keys")
master = typer.Typer(help="The key that encrypts all customer keys.", no_args_is_help=True)
app.add_typer(master, name="master")
Name = Annotated[
    str,
    typer.Argument(help="projects/P/locations/L/keyRings/R/cryptoKeys/K, with /cryptoKeyVersions/N for one version."),
]
LIST_LIMIT = 1000


@keys.command()
def create(
    context: typer.Context,
    name: Name,
    rotation_days: Annotated[int, typer.Option(help="A new primary version every so many days; 0: never.", min=0)] = 0,
    destroy_hours: Annotated[
        int, typer.Option(help="How long a destroyed version can be restored; 0: not at all.", min=0)
    ] = 24,
) -> None:
    """Create a key, and its key ring if there is none."""
    ring, key = _split(name)
    parent, _, ring_id = ring.rpartition("/keyRings/")
    body: dict[str, Any] = {"purpose": "ENCRYPT_DECRYPT", "destroyScheduledDuration": f"{3600 * destroy_hours}s"}
    if rotation_days:
        body["rotationPeriod"] = f"{86_400 * rotation_days}s"
    with client(context) as api:
        try:
            api.post(f"/v1/{parent}/keyRings", keyRingId=ring_id)
        except ApiError as error:
            if error.answered_http_status != 409:
                raise
        created = api.post(f"/v1/{ring}/cryptoKeys", body, cryptoKeyId=key)
    output.console().print(f"Created {created['name']}", soft_wrap=True)


@keys.command("list")
def list_keys(
    context: typer.Context,
    ring: Annotated[str, typer.Argument(help="projects/P/locations/L/keyRings/R; default: every ring.")] = "",
    as_json: AsJson = False,
) -> None:
    """Keys with the state of their primary version."""
    with client(context) as api:
        parent = f"/v1/projects/{api.project}/locations/-/keyRings"
        rings = [ring] if ring else [one["name"] for one in api.pages(parent, "keyRings", LIST_LIMIT)]
        items = [key for one in rings for key in api.pages(f"/v1/{one}/cryptoKeys", "cryptoKeys", LIST_LIMIT)]
    if as_json:
        output.print_json(items)
        return
    rows = (
        {
            "KEY": key["name"],
            "PRIMARY": key["primary"]["name"].rpartition("/")[2],
            "STATE": key["primary"]["state"],
            "ROTATES": output.local_time(key.get("nextRotationTime", "")),
        }
        for key in items
    )
    output.print_rows(rows, ("KEY", "PRIMARY", "STATE", "ROTATES"), "No keys.")


@keys.command()
def rotate(context: typer.Context, name: Name) -> None:
    """Add a version and make it primary; files encrypted under older versions stay readable."""
    _split(name)
    with client(context) as api:
        version = api.post(f"/v1/{name}/cryptoKeyVersions")
        api.post(f"/v1/{name}:updatePrimaryVersion", {"cryptoKeyVersionId": version["name"].rpartition("/")[2]})
    output.console().print(f"{version['name']} is the primary version.", soft_wrap=True)


@keys.command()
def disable(context: typer.Context, name: Name) -> None:
    """Disable a key: nothing encrypted under it can be read until it is enabled again."""
    with client(context) as api:
        for version in _versions(api, name, "ENABLED"):
            _show(api.request("PATCH", f"/v1/{version}", params={"updateMask": "state"}, json={"state": "DISABLED"}))


@keys.command()
def enable(context: typer.Context, name: Name) -> None:
    """The reverse of disable."""
    with client(context) as api:
        for version in _versions(api, name, "DISABLED"):
            _show(api.request("PATCH", f"/v1/{version}", params={"updateMask": "state"}, json={"state": "ENABLED"}))


@keys.command()
def destroy(context: typer.Context, name: Name) -> None:
    """Schedule the destruction of the key: afterwards nobody can recover the files encrypted under it."""
    with client(context) as api:
        for version in _versions(api, name, "ENABLED", "DISABLED"):
            _show(api.post(f"/v1/{version}:destroy"))


@keys.command()
def restore(context: typer.Context, name: Name) -> None:
    """Cancel a scheduled destruction; the versions stay disabled until they are enabled."""
    with client(context) as api:
        for version in _versions(api, name, "DESTROY_SCHEDULED"):
            _show(api.post(f"/v1/{version}:restore"))


@master.command("rotate")
def rotate_master(
    home: Home = None,
    to: Annotated[
        Path | None,
        typer.Option(help="File of your own new master key; created if it does not exist."),
    ] = None,
) -> None:
    """Encrypt every customer key under a new master key. The service must be stopped. Repeat the command if it was
    interrupted."""
    # Loads the service, which the commands of clients do without.
    from sarto import settings as settings_
    from sarto.cli.serve import alone
    from sarto.storage.database.database import Database
    from sarto.storage.encryption import master_key
    from sarto.storage.encryption.key_service import all_versions

    settings = settings_.load(home)
    data = settings.shared_folder
    old_key, file = settings.master_key.get_secret_value(), settings.master_key_file
    if (old_key or file) and to is None:
        raise InvalidArgument("The master key is set in the settings; name the file of the new one with --to.")
    if to is not None and not (old_key or file):
        raise InvalidArgument("The master key is the service's own; leave --to out.")
    with alone(settings.home):
        database = Database.in_home(settings.home, settings.database_url)
        try:
            versions = all_versions(database)
            if to is not None:
                if not to.exists():
                    master_key.make_file(to)
                old, new = master_key.read_master(data, old_key, file), master_key.read_file(to)
                count = master_key.rotate(data / "keys", old, new, versions)
            elif settings.master_key_keyring:
                count = master_key.rotate_keyring(data, data / "keys", versions)
            else:
                count = master_key.rotate_file(data, data / "keys", versions)
        finally:
            database.close()
    then = f" Set master_key_file to {to} before the service starts." if to else ""
    output.console().print(f"{count} key versions are encrypted under a new master key.{then}", soft_wrap=True)


def _split(name: str) -> tuple[str, str]:
    ring, separator, key = name.partition("/cryptoKeys/")
    if not separator or "/" in key or "/keyRings/" not in ring:
        raise InvalidArgument(f'"{name}" is not of the form projects/P/locations/L/keyRings/R/cryptoKeys/K.')
    return ring, key


def _versions(api: Client, name: str, *states: str) -> list[str]:
    """The named version or, for a whole key, those in the states. Raises InvalidArgument when there is none."""
    if "/cryptoKeyVersions/" in name:
        return [name]
    _split(name)
    versions = api.pages(f"/v1/{name}/cryptoKeyVersions", "cryptoKeyVersions", LIST_LIMIT)
    chosen = [version["name"] for version in versions if version["state"] in states]
    if not chosen:
        raise InvalidArgument(f"{name} has no version that is {' or '.join(states)}.")
    return chosen


def _show(version: dict[str, Any]) -> None:
    until = f", until {output.local_time(version['destroyTime'])}" if version["state"] == "DESTROY_SCHEDULED" else ""
    output.console().print(f"{version['name']} is {version['state']}{until}", soft_wrap=True)
