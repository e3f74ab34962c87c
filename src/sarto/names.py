"""Resource names: parse, format, reject. `projects/p/locations/l/tuningJobs/7` and other names.

An id of a caller never contains `/`, `:` or `..`. This module does not access the database.
"""

from __future__ import annotations

import re
import secrets
import time
from dataclasses import dataclass, replace

from sarto.errors import InvalidArgument

REGIONS = frozenset(
    (
        "africa-south1 asia-east1 asia-east2 asia-northeast1 asia-northeast2 asia-northeast3 asia-south1 asia-south2 "
        "asia-southeast1 asia-southeast2 australia-southeast1 australia-southeast2 europe-central2 europe-north1 "
        "europe-north2 europe-southwest1 europe-west1 europe-west2 europe-west3 europe-west4 europe-west6 europe-west8 "
        "europe-west9 europe-west10 europe-west12 me-central1 me-central2 me-west1 northamerica-northeast1 "
        "northamerica-northeast2 northamerica-south1 southamerica-east1 southamerica-west1 us-central1 us-central2 "
        "us-east1 us-east4 us-east5 us-east7 us-south1 us-west1 us-west2 us-west3 us-west4 us-west8 us eu global"
    ).split()
)

PROJECT = re.compile(r"[a-z][a-z0-9-]{2,28}[a-z0-9]|[0-9]{1,19}")
SYSTEM_PROJECT = "sys"
"""Id of the project of the service's own accounts; too short for a user's project."""
KEY_ID = re.compile(r"[A-Za-z0-9_-]{1,63}")
"""Pattern of ids of key rings and keys."""
ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._~-]{0,127}")


@dataclass(frozen=True)
class LocationName:
    """`projects/{project}/locations/{location}`; `project` is an id or a number, as in the request."""

    project: str
    location: str

    def __str__(self) -> str:
        return f"projects/{self.project}/locations/{self.location}"


@dataclass(frozen=True)
class ResourceName:
    """`projects/{project}/locations/{location}/{collection}/{id}`, with `@version` if the caller gave one."""

    project: str
    location: str
    collection: str
    id: str
    version: str = ""

    def __str__(self) -> str:
        base = f"projects/{self.project}/locations/{self.location}/{self.collection}/{self.id}"
        return f"{base}@{self.version}" if self.version else base

    @property
    def parent(self) -> LocationName:
        return LocationName(self.project, self.location)

    @property
    def on(self) -> str:
        """The name below its project, without a version: the resource of a policy."""
        return f"locations/{self.location}/{self.collection}/{self.id}"

    def of_project(self, project: str) -> ResourceName:
        """The same name with another project (responses have the project number)."""
        return replace(self, project=project)


def check_project(text: str) -> str:
    if text != SYSTEM_PROJECT and not PROJECT.fullmatch(text):
        raise InvalidArgument(f'"{text}" is not a project id or number (lower case letters, digits and hyphens).')
    return text


def check_location(text: str, *, wildcard: bool = False) -> str:
    """Check for a region name of Google or, if lists allow it, `-` for all of them."""
    if text in REGIONS or (wildcard and text == "-"):
        return text
    raise InvalidArgument(f'"{text}" is not a location; use a region such as us-central1, europe-west4 or global.')


def check_id(text: str, what: str = "id") -> str:
    if not ID.fullmatch(text) or ".." in text:
        raise InvalidArgument(f'"{text}" is not a valid {what}: letters, digits, ".", "_" and "-" only, 128 at most.')
    return text


def parse_location(text: str, *, wildcard: bool = False) -> LocationName:
    parts = text.split("/")
    if len(parts) != 4 or parts[0] != "projects" or parts[2] != "locations":
        raise InvalidArgument(f'"{text}" is not of the form projects/PROJECT/locations/LOCATION.')
    return LocationName(check_project(parts[1]), check_location(parts[3], wildcard=wildcard))


def parse_resource(text: str, collection: str, *, versioned: bool = False) -> ResourceName:
    """A name in `collection`; with `versioned`, `id@version` is split."""
    parts = text.split("/")
    if len(parts) != 6 or parts[0] != "projects" or parts[2] != "locations" or parts[4] != collection:
        raise InvalidArgument(f'"{text}" is not of the form projects/PROJECT/locations/LOCATION/{collection}/ID.')
    project, location = check_project(parts[1]), check_location(parts[3])
    identifier, _, version = parts[5].partition("@") if versioned else (parts[5], "", "")
    if versioned and "@" in parts[5]:
        check_id(version, "version or alias")
    return ResourceName(project, location, collection, check_id(identifier), version)


def new_id() -> str:
    """A 19-digit number that grows with time: microseconds since 1970, then three random digits."""
    return f"{time.time_ns() // 1000}{secrets.randbelow(1000):03d}"


def parse_gs_uri(uri: str, field: str) -> tuple[str, str]:
    """`gs://bucket/object` as (bucket, object); the object is empty for a bare bucket."""
    scheme, _, rest = uri.partition("://")
    bucket, _, name = rest.partition("/")
    if scheme != "gs" or not bucket:
        raise InvalidArgument.field(field, f'"{uri}" is not a Cloud Storage URI; write gs://BUCKET/OBJECT.')
    return bucket, name


def asker(tenant: str) -> str:
    """The project whose turn a request uses, from its tenant: the project of the caller, else the one of the
    resource."""
    return tenant.rstrip("/").rpartition("/")[2]
