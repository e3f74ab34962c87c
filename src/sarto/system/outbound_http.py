"""Outgoing HTTP on behalf of a user: only to public addresses, unless a setting allows private ones.

A name is resolved once and checked, and the connection is made to the checked address. So a name with a different
second answer (DNS rebinding) has no effect. Redirects are not followed.
"""

from __future__ import annotations

import http.client
import ipaddress
import queue
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from urllib.parse import urlsplit

from sarto.errors import InvalidArgument, Unavailable

MOST_ANSWER_BYTES = 65_536
PORTS = (443, 8443)
"""Allowed ports of public addresses; other ports belong to services that do not expect HTTP from strangers."""
UNICAST = ipaddress.ip_network("2000::/3")
SPECIAL = tuple(
    ipaddress.ip_network(text)
    for text in (
        "192.0.0.0/24",
        "192.88.99.0/24",
        "2001::/23",
        "2001:db8::/32",
        "2002::/16",
        "2620:4f:8000::/48",
        "3fff::/20",
    )
)
"""Ranges for protocols, tunnels and documentation, which the library's table may treat as global, depending on its
version. Addresses that stand for IPv4 ones (mapped, compatible, NAT64) are outside `UNICAST`."""
WEBHOOK_SETTING, REWARD_SETTING = "webhook_private_addresses", "reward_private_addresses"


@dataclass(frozen=True)
class Target:
    """A parsed http(s) URL. `setting` is the setting that allows it a private address, unless it has that already."""

    scheme: str
    host: str
    port: int
    path: str
    allow_private: bool = False
    setting: str = WEBHOOK_SETTING


@dataclass(frozen=True)
class HttpAnswer:
    status: int
    body: bytes
    retry_after: str = ""


def parse(url: str, field: str, allow_private: bool, setting: str = WEBHOOK_SETTING) -> Target:
    """Raises InvalidArgument for anything but an https URL; http only if private addresses are allowed."""
    try:
        parts = urlsplit(url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError as error:
        raise InvalidArgument.field(field, f'"{url[:200]}": {error}') from None
    allowed = ("https", "http") if allow_private else ("https",)
    if parts.scheme not in allowed or not parts.hostname or parts.username is not None:
        raise InvalidArgument.field(field, f'"{url[:200]}" is not an {" or ".join(allowed)} URL without a user name.')
    if port not in PORTS and not allow_private:
        raise InvalidArgument.field(
            field,
            f'"{url[:200]}": port {port} is not called, only {" and ".join(map(str, PORTS))}; its administrator can'
            f" allow others with {setting}.",
        )
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    if not path.isascii() or not path.isprintable() or " " in path:
        raise InvalidArgument.field(field, f'"{url[:200]}": write its path percent-encoded.')
    return Target(parts.scheme, parts.hostname, port, path, allow_private, setting)


def resolve(target: Target) -> tuple[str, int]:
    """An allowed address of the target, and its port. Raises Unavailable, with the same message for an unknown name and
    a private one, so that callers do not learn the names and addresses of a network."""
    try:
        infos = socket.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)
    except (socket.gaierror, UnicodeError):
        infos = []
    addresses = [str(address_info[0]) for _, _, _, _, address_info in infos]
    if not addresses or not (target.allow_private or all(map(is_public, addresses))):
        raise Unavailable(
            f"{target.host} has no public address that is known here; its administrator can allow others with"
            f" {target.setting}."
        )
    return addresses[0], target.port


def is_public(address: str) -> bool:
    parsed = ipaddress.ip_address(address.partition("%")[0])
    if (parsed.version == 6 and parsed not in UNICAST) or any(parsed in network for network in SPECIAL):
        return False
    return parsed.is_global and not parsed.is_multicast


def post(
    target: Target, body: bytes, headers: dict[str, str], seconds: float, most_bytes: int = MOST_ANSWER_BYTES
) -> HttpAnswer:
    """The response to one POST, its body cut at `most_bytes`. Raises Unavailable for an address that is not allowed,
    OSError, HTTPException. Raises TimeoutError when the whole call, from lookup to the end of the response, takes
    longer than `seconds`."""
    until = time.monotonic() + seconds
    address = _resolve_until(target, until)
    raw = socket.create_connection(address, _left(until))
    try:
        with _shut_down_at(raw, until):
            return _exchange(raw, target, body, headers, most_bytes, until)
    except (OSError, http.client.HTTPException) as error:
        if time.monotonic() >= until:
            raise TimeoutError(f"no whole answer within {seconds:g} seconds") from error
        raise
    finally:
        raw.close()


def _exchange(
    raw: socket.socket, target: Target, body: bytes, headers: dict[str, str], most_bytes: int, until: float
) -> HttpAnswer:
    raw.settimeout(_left(until))
    if target.scheme == "https":
        raw = ssl.create_default_context().wrap_socket(raw, server_hostname=target.host)
    with raw:
        connection = http.client.HTTPConnection(target.host, target.port)
        connection.sock = raw
        connection.request("POST", target.path, body, headers)
        answer = connection.getresponse()
        read = b""
        while len(read) < most_bytes and (part := answer.read1(most_bytes - len(read))):
            read += part
        if time.monotonic() >= until:  # the connection was shut down, which reads like the end of a body
            raise TimeoutError
        return HttpAnswer(answer.status, read, answer.headers.get("retry-after", ""))


@contextmanager
def _shut_down_at(raw: socket.socket, until: float) -> Iterator[None]:
    """Shut down this connection at the deadline: a socket's own timeout restarts with each byte."""
    with raw.dup() as twin:
        timer = threading.Timer(_left(until), _shut_down, (twin,))
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
            timer.join()


def _shut_down(connection: socket.socket) -> None:
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


def _resolve_until(target: Target, until: float) -> tuple[str, int]:
    """`resolve` with a deadline. The system's resolver has none, so its thread is abandoned after it."""
    answer: queue.SimpleQueue[tuple[str, int] | Exception] = queue.SimpleQueue()

    def work() -> None:
        try:
            answer.put(resolve(target))
        except Exception as error:
            answer.put(error)

    threading.Thread(target=work, name="resolve", daemon=True).start()
    try:
        outcome = answer.get(timeout=_left(until))
    except queue.Empty:
        raise TimeoutError(f"the name {target.host} could not be looked up in time") from None
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


def _left(until: float) -> float:
    left = until - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left
