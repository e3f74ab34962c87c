"""The origin of a call: the host name it was sent to, its address, and the user behind a local connection.

A web page can make a browser call this machine under a name of its own (DNS rebinding); `AllowedHosts` refuses such
names. The metadata-server paths return tokens without a sign-in, so `check_local` requires more.
"""

from __future__ import annotations

import hmac
import ipaddress
import os
import socket
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import urlsplit

from starlette.types import Scope

from sarto.errors import PermissionDenied

METADATA_HOST = "metadata.google.internal"
BRIDGE_HEADER = b"x-sarto-grpc-caller"
"""Header of the gRPC bridge in this process: its secret, and the address of its caller."""
FROM_BROWSERS = ("origin", "referer", "sec-")
FROM_PROXIES = (
    "forwarded", "via", "x-forwarded", "x-real-ip", "x-client-ip", "x-cluster-client-ip", "x-original", "x-envoy",
    "true-client-ip", "cf-connecting-ip", "x-remote", "x-proxyuser", "proxy-",
)  # fmt: skip
"""Prefixes of headers that a program on this machine has no reason to send."""
CONNECTIONS = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))
ESTABLISHED = "01"


class AllowedHosts:
    """The accepted host names: those of this machine, and the configured ones. Without configured names they are
    checked only while the server listens on this machine alone, since elsewhere its names are unknown."""

    def __init__(self, listening: str, public: Iterable[str] = ()) -> None:
        self._names = frozenset(name.lower().rstrip(".") for name in (*public, listening, METADATA_HOST))
        self._is_checked = is_loopback(listening) or len(self._names) > 2

    def check(self, scope: Scope) -> None:
        """Raises PermissionDenied."""
        if not self._is_checked:
            return
        for name in named_hosts(scope):
            if name not in self._names and not is_loopback(name):
                raise PermissionDenied(
                    f'Host: "{name[:100]}" is not a name of this server. Call it by its address on this machine, or let'
                    " its administrator add the name to the setting public_names."
                )


def named_hosts(scope: Scope) -> list[str]:
    """The host of every Host header, in lower case without its port; an empty text for an invalid one."""
    return [_host(value.decode("latin-1")) for name, value in scope["headers"] if name == b"host"]


def _host(text: str) -> str:
    try:
        return (urlsplit(f"//{text}").hostname or "").rstrip(".")
    except ValueError:
        return ""


def is_loopback(host: str) -> bool:
    try:
        return _address(host).is_loopback
    except ValueError:
        return host == "localhost"


def check_local(scope: Scope) -> None:
    """Accept only programs of the server's own user on this machine, under a host name that no web page can have.
    Raises PermissionDenied."""
    peer = scope.get("client") or ("", 0)
    if not is_loopback(peer[0]):
        raise PermissionDenied("The metadata server answers callers on this machine only.")
    for name in (name.decode("latin-1") for name, _ in scope["headers"]):
        if name.startswith(FROM_BROWSERS):
            raise PermissionDenied(f"{name}: the metadata server does not answer browsers.")
        if name.startswith(FROM_PROXIES):
            raise PermissionDenied(f"{name}: the metadata server does not answer proxies.")
    hosts = named_hosts(scope)
    if len(hosts) != 1 or not (is_loopback(hosts[0]) or hosts[0] == METADATA_HOST):
        raise PermissionDenied(
            f"Host: the metadata server answers to 127.0.0.1, [::1], localhost and {METADATA_HOST} only."
        )
    if _user_of(peer, scope.get("server") or ("", 0)) != os.getuid():
        raise PermissionDenied("The metadata server answers programs of the user it runs as only.")


def can_tell_users() -> bool:
    return CONNECTIONS[0].exists()


def _user_of(peer: tuple[str, int], server: tuple[str, int | None]) -> int | None:
    """The user of the process at the other end of a local connection, from Linux's socket tables; None if it is not
    local."""
    pairs = [(_written(*peer, wide), _written(server[0], server[1] or 0, wide)) for wide in (False, True)]
    for path in CONNECTIONS:
        if not path.exists():
            continue
        for line in path.read_text().splitlines()[1:]:
            fields = line.split()
            if (fields[1], fields[2]) in pairs and fields[3] == ESTABLISHED:
                return int(fields[7])
    return None


def _written(host: str, port: int, wide: bool) -> str:
    """An address in the form of /proc/net/tcp (or, wide, tcp6): words of four bytes in native byte order."""
    address = _address(host)
    if address.version == 6 and not wide:
        return ""
    packed = address.packed if address.version == 6 else (b"\0" * 10 + b"\xff" * 2 if wide else b"") + address.packed
    words = (packed[at : at + 4] for at in range(0, len(packed), 4))
    return "".join(f"{socket.htonl(int.from_bytes(word)):08X}" for word in words) + f":{port:04X}"


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """The IPv4 address for an IPv4 address in IPv6 form."""
    address = ipaddress.ip_address(host.partition("%")[0])
    return address.ipv4_mapped or address if isinstance(address, ipaddress.IPv6Address) else address


def name_caller(scope: Scope, secret: str) -> None:
    """Replace the gRPC bridge's address by that of its caller."""
    for name, value in scope["headers"]:
        if name == BRIDGE_HEADER and secret:
            shown, _, address = value.decode("latin-1").partition(" ")
            if hmac.compare_digest(shown.encode(), secret.encode()):
                scope["client"] = (address, 0)
