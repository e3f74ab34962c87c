"""The types of the embedded buckets: Bucket, StoredObject, conditions, and the syntax of names."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sarto.errors import ConditionNotMet, InvalidArgument, NotFound, PermissionDenied

_BUCKET_PART = re.compile(r"[a-z0-9]([a-z0-9_-]{0,61}[a-z0-9])?")
_FORBIDDEN = re.compile("[\x00-\x1f\x7f\ufffe\uffff]")  # not allowed in XML listings, headers or database texts
MAX_NAME_BYTES = 1024
MAX_METADATA_BYTES = 8192


def content_name(sha256: str, owner: str) -> str:
    """The name of content: its digest and its project. Equal bytes are stored once within a project, and separately in
    two projects; else the time of a call or the use of the disk would reveal another project's content."""
    return f"{sha256}-{owner}" if owner else sha256


class NoSuchBucket(NotFound):
    """A bucket that does not exist, or not for this caller."""

    def __init__(self) -> None:
        super().__init__("The specified bucket does not exist.")


@dataclass(frozen=True)
class Bucket:
    """A bucket and the number of its project; `resource` has labels and further fields."""

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
        """The key under which new objects are encrypted; empty for none."""
        return str(self.resource.get("encryption", {}).get("defaultKmsKeyName", ""))


@dataclass(frozen=True)
class StoredObject:
    """The live version of an object. `md5` and `crc32c` are base64; `fields` has the optional ObjectFields."""

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

    @property
    def path(self) -> str:
        """Its name in the audit log."""
        return f"projects/_/buckets/{self.bucket}/objects/{self.name}"

    @property
    def content(self) -> str:
        """The name of its bytes."""
        return content_name(self.sha256, self.fields.owner)


@dataclass(frozen=True)
class ObjectFields:
    """Properties that a writer may set besides the bytes. An empty text means unset."""

    content_type: str = "application/octet-stream"
    metadata: Mapping[str, str] = field(default_factory=dict)
    content_encoding: str = ""
    content_disposition: str = ""
    content_language: str = ""
    cache_control: str = ""
    custom_time: str = ""
    storage_class: str = "STANDARD"
    kms_key: str = ""
    """The key under which the content is encrypted; set by the receiver, like `sealed_as`."""
    sealed_as: str = ""
    owner: str = ""
    """The project of the content; set like `kms_key`, and empty for content from before projects had content of their
    own."""

    def check(self) -> None:
        for name, text in vars(self).items():
            if isinstance(text, str) and (len(text) > 255 or not text.isprintable()):
                raise InvalidArgument(f'"{name}" of an object is at most 255 printable characters.')
        if sum(len(key.encode()) + len(value.encode()) for key, value in self.metadata.items()) > MAX_METADATA_BYTES:
            raise InvalidArgument(f"The metadata of an object is at most {MAX_METADATA_BYTES} bytes.")
        if any(not (key + value).isprintable() for key, value in self.metadata.items()):
            raise InvalidArgument("The metadata of an object must be printable text.")


@dataclass(frozen=True)
class Conditions:
    """Preconditions of a change, checked inside its transaction. Generation 0 means: no such object.

    `may_replace` is false for a caller without the right to delete, who may not replace an object either."""

    generation: int | None = None
    not_generation: int | None = None
    metageneration: int | None = None
    not_metageneration: int | None = None
    may_replace: bool = True

    def check(self, stored: StoredObject | None) -> None:
        """Raises ConditionNotMet with the first condition that fails, and PermissionDenied for a replacement."""
        generation = stored.generation if stored else 0
        if self.generation not in (None, generation):
            raise _not_met("ifGenerationMatch")
        if self.not_generation == generation:
            raise _not_met("ifGenerationNotMatch")
        self.check_metageneration(stored.metageneration if stored else 0)
        if stored is not None and not self.may_replace:
            raise PermissionDenied(
                f"{stored.uri} exists, and to replace it storage.objects.delete is needed on bucket {stored.bucket}; "
                "write to another name, or have roles/storage.objectAdmin on the bucket."
            )

    def check_metageneration(self, metageneration: int) -> None:
        if self.metageneration not in (None, metageneration):
            raise _not_met("ifMetagenerationMatch")
        if self.not_metageneration == metageneration:
            raise _not_met("ifMetagenerationNotMatch")


def _not_met(condition: str) -> ConditionNotMet:
    return ConditionNotMet(f"At least one of the pre-conditions you specified did not hold: {condition}.")


@dataclass(frozen=True)
class Listing:
    """One page: objects in the order of their names, their common prefixes, and the start of the next page."""

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
            "beginning and ending with a letter or digit."
        )
    return name


def check_object_name(name: str) -> str:
    """1 to 1024 bytes of UTF-8 without control characters. `..` is an ordinary name here: a name is never a path."""
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        raise InvalidArgument("An object name must be valid UTF-8.") from None
    if not 1 <= size <= MAX_NAME_BYTES:
        raise InvalidArgument(f"An object name has 1 to {MAX_NAME_BYTES} bytes of UTF-8; this one has {size}.")
    if _FORBIDDEN.search(name) or name in (".", ".."):
        raise InvalidArgument("An object name must not be '.' or '..' or hold control characters.")
    return name


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
