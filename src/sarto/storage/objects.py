"""The words of the embedded buckets: Bucket, StoredObject, what may be asked of them, and which names are allowed.

Knows no database and no file; used by `buckets`, `uploads` and the storage API.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sarto.errors import ConditionNotMet, InvalidArgument, NotFound

_BUCKET_PART = re.compile(r"[a-z0-9]([a-z0-9_-]{0,61}[a-z0-9])?")
_FORBIDDEN = re.compile("[\x00-\x1f\x7f\ufffe\uffff]")  # what XML listings, headers or a database text cannot carry
MAX_NAME_BYTES = 1024
MAX_METADATA_BYTES = 8192


class NoSuchBucket(NotFound):
    """A bucket that does not exist, or not for this caller."""

    def __init__(self) -> None:
        super().__init__("The specified bucket does not exist.")


@dataclass(frozen=True)
class Bucket:
    """A bucket and the number of the project that owns it; `resource` holds labels and the like."""

    name: str
    project: str
    location: str
    is_public: bool
    metageneration: int
    resource: Mapping[str, Any]
    create_time: float
    update_time: float

    @property
    def default_key(self) -> str:
        """The key that everything stored here is sealed under; empty without one."""
        return str(self.resource.get("encryption", {}).get("defaultKmsKeyName", ""))


@dataclass(frozen=True)
class StoredObject:
    """The live version of an object. `md5` and `crc32c` are base64; `fields` holds the optional ObjectFields."""

    bucket: str
    name: str
    generation: int
    metageneration: int
    size: int
    sha256: str
    md5: str
    crc32c: str
    content_type: str
    fields: ObjectFields
    create_time: float
    update_time: float

    @property
    def uri(self) -> str:
        return f"gs://{self.bucket}/{self.name}"


@dataclass(frozen=True)
class ObjectFields:
    """What a writer may say about an object besides its bytes. An empty text means it was not said."""

    content_type: str = "application/octet-stream"
    metadata: Mapping[str, str] = field(default_factory=dict)
    content_encoding: str = ""
    content_disposition: str = ""
    content_language: str = ""
    cache_control: str = ""
    custom_time: str = ""
    storage_class: str = "STANDARD"
    kms_key: str = ""
    """The key that the content is sealed under; set by whoever received it, as `sealed_as` is."""
    sealed_as: str = ""

    def check(self) -> None:
        for name, text in vars(self).items():
            if isinstance(text, str) and (len(text) > 255 or not text.isprintable()):
                raise InvalidArgument(f'"{name}" of an object is at most 255 printable characters')
        if sum(len(key.encode()) + len(value.encode()) for key, value in self.metadata.items()) > MAX_METADATA_BYTES:
            raise InvalidArgument(f"the metadata of an object is at most {MAX_METADATA_BYTES} bytes")
        if any(not (key + value).isprintable() for key, value in self.metadata.items()):
            raise InvalidArgument("the metadata of an object must be printable text")


@dataclass(frozen=True)
class Conditions:
    """What must hold when a change is made; checked inside its transaction. Generation 0 means: no such object."""

    generation: int | None = None
    not_generation: int | None = None
    metageneration: int | None = None
    not_metageneration: int | None = None

    def check(self, found: StoredObject | None) -> None:
        """Raises ConditionNotMet naming the first condition that fails."""
        generation = found.generation if found else 0
        if self.generation not in (None, generation):
            raise _not_met("ifGenerationMatch")
        if self.not_generation == generation:
            raise _not_met("ifGenerationNotMatch")
        self.check_metageneration(found.metageneration if found else 0)

    def check_metageneration(self, metageneration: int) -> None:
        if self.metageneration not in (None, metageneration):
            raise _not_met("ifMetagenerationMatch")
        if self.not_metageneration == metageneration:
            raise _not_met("ifMetagenerationNotMatch")


def _not_met(condition: str) -> ConditionNotMet:
    return ConditionNotMet(f"At least one of the pre-conditions you specified did not hold: {condition}.")


@dataclass(frozen=True)
class Listing:
    """One page: objects in the order of their names, the common prefixes among them, and where the next page begins."""

    objects: tuple[StoredObject, ...]
    prefixes: tuple[str, ...]
    next_token: str


def check_bucket_name(name: str) -> str:
    """Google's rules: 3 to 63 characters (222 with dots), lower case, digits, `-`, `_`, `.`; no address, no `goog`."""
    parts = name.split(".")
    longest = 63 if len(parts) == 1 else 222
    good = 3 <= len(name) <= longest and all(_BUCKET_PART.fullmatch(part) for part in parts)
    if not good or name.startswith("goog") or _is_address(name):
        raise InvalidArgument(
            f"Invalid bucket name: '{name[:80]}'. Use 3 to 63 lower case letters, digits, '-', '_' and '.', "
            "beginning and ending with a letter or digit"
        )
    return name


def check_object_name(name: str) -> str:
    """1 to 1024 bytes of UTF-8 without control characters. `..` is an ordinary name here: a name is never a path."""
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        raise InvalidArgument("an object name must be valid UTF-8") from None
    if not 1 <= size <= MAX_NAME_BYTES:
        raise InvalidArgument(f"an object name has 1 to {MAX_NAME_BYTES} bytes of UTF-8; this one has {size}")
    if _FORBIDDEN.search(name) or name in (".", ".."):
        raise InvalidArgument("an object name must not be '.' or '..' or hold control characters")
    return name


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
