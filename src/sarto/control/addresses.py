"""Which addresses this service may call on behalf of a user: public ones, unless a setting allows private ones too.

A name is resolved once, checked, and the connection made to the very address that was checked: a name that answers
differently the second time (DNS rebinding) gains nothing. Redirects are not followed.
"""

from __future__ import annotations

import http.client
import ipaddress
import socket
import ssl
import time
from dataclasses import dataclass
from urllib.parse import urlsplit

from sarto.errors import InvalidArgument, Unavailable

MOST_ANSWER_BYTES = 65_536
EMBEDDING = (ipaddress.ip_network("64:ff9b::/96"), ipaddress.ip_network("2002::/16"), ipaddress.ip_network("2001::/32"))
"""IPv6 ranges whose addresses stand for IPv4 ones."""


WEBHOOK_SETTING = "webhook_private_addresses"


@dataclass(frozen=True)
class Target:
    """An http(s) URL taken apart. `setting` is what allows it a private address, where it has not got that already."""

    scheme: str
    host: str
    port: int
    path: str
    allow_private: bool = False
    setting: str = WEBHOOK_SETTING


@dataclass(frozen=True)
class Answered:
    status: int
    body: bytes
    retry_after: str = ""


def parse(url: str, field: str, allow_private: bool, setting: str = WEBHOOK_SETTING) -> Target:
    """Raises InvalidArgument for what is no https URL; http only where private addresses are allowed."""
    try:
        parts = urlsplit(url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError as error:
        raise InvalidArgument.field(field, f'"{url[:200]}": {error}') from None
    allowed = ("https", "http") if allow_private else ("https",)
    if parts.scheme not in allowed or not parts.hostname or parts.username is not None:
        raise InvalidArgument.field(field, f'"{url[:200]}" is not an {" or ".join(allowed)} URL without a user name.')
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    if not path.isascii() or not path.isprintable() or " " in path:
        raise InvalidArgument.field(field, f'"{url[:200]}": write its path percent-encoded.')
    return Target(parts.scheme, parts.hostname, port, path, allow_private, setting)


def resolve(target: Target) -> tuple[str, int]:
    """An address of the target that may be called, and its port. Raises InvalidArgument, Unavailable."""
    try:
        found = socket.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)
    except (socket.gaierror, UnicodeError) as error:
        raise Unavailable(f"{target.host} has no address: {error}") from None
    addresses = [str(place[0]) for _, _, _, _, place in found]
    for address in addresses:
        if not target.allow_private and not is_public(address):
            raise InvalidArgument(
                f"{target.host} is at {address}, which is not a public address; its administrator can allow those with"
                f" {target.setting}."
            )
    return addresses[0], target.port


def is_public(address: str) -> bool:
    found = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(found, ipaddress.IPv6Address):
        if found.ipv4_mapped is not None:
            return is_public(str(found.ipv4_mapped))
        if any(found in network for network in EMBEDDING):
            return False
    return found.is_global and not found.is_multicast


def post(
    target: Target, body: bytes, headers: dict[str, str], seconds: float, most_bytes: int = MOST_ANSWER_BYTES
) -> Answered:
    """The answer to one POST, its body cut at `most_bytes`. Raises InvalidArgument for an address that is not allowed,
    OSError (a TimeoutError after `seconds` of silence, or that long after the answer began), HTTPException."""
    raw = socket.create_connection(resolve(target), seconds)
    try:
        if target.scheme == "https":
            raw = ssl.create_default_context().wrap_socket(raw, server_hostname=target.host)
        connection = http.client.HTTPConnection(target.host, target.port, timeout=seconds)
        connection.sock = raw
        connection.request("POST", target.path, body, headers)
        answer = connection.getresponse()
        read, until = b"", time.monotonic() + seconds
        while len(read) < most_bytes and (part := answer.read1(most_bytes - len(read))):
            read += part
            if time.monotonic() > until:
                raise TimeoutError("the answer did not end in time")
        return Answered(answer.status, read, answer.headers.get("retry-after", ""))
    finally:
        raw.close()
