"""Page sizes and page tokens. A token holds the last key of a page and is bound to the list it came from: it is stable
under inserts, and one that was cut, altered or taken to another list is refused."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable
from hashlib import blake2b
from typing import Any

from sarto.errors import InvalidArgument

DEFAULT_SIZE = 100
MOST = 1000
SCAN = 200
_CHECK_BYTES = 8


def page_size(asked: int) -> int:
    """0 means the default; more than the most is the most. Raises InvalidArgument for a negative number."""
    if asked < 0:
        raise InvalidArgument.field("page_size", f"{asked} is negative; use 0 for the default or at most {MOST}.")
    return min(asked or DEFAULT_SIZE, MOST)


def token(last: str, *scope: str) -> str:
    """The token behind `last`, for the list that `scope` (parent, filter, …) names."""
    return base64.urlsafe_b64encode(_check(last, scope) + last.encode()).decode().rstrip("=")


def start(text: str, *scope: str) -> str:
    """The key to go on behind; empty for an empty token. Raises InvalidArgument for one not made by `token`."""
    if not text:
        return ""
    try:
        raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        last = raw[_CHECK_BYTES:].decode()
    except (binascii.Error, ValueError):
        raw, last = b"", ""
    if not last or raw[:_CHECK_BYTES] != _check(last, scope):
        raise InvalidArgument.field(
            "page_token",
            "The page token is not one this list gave; repeat the request with the same parent and filter, or drop it.",
        )
    return last


def page(
    after: Callable[[str, int], list[tuple[str, dict[str, Any]]]],
    keep: Callable[[dict[str, Any]], bool],
    asked: int,
    page_token: str,
    *scope: str,
) -> tuple[list[dict[str, Any]], str]:
    """A page of what `keep` keeps, for lists filtered in memory. `after(key, limit)` gives (key, value) pairs."""
    size, key = page_size(asked), start(page_token, *scope)
    found: list[tuple[str, dict[str, Any]]] = []
    while len(found) <= size:
        rows = after(key, SCAN)
        found.extend(row for row in rows if keep(row[1]))
        if len(rows) < SCAN:
            break
        key = rows[-1][0]
    more = token(found[size - 1][0], *scope) if len(found) > size else ""
    return [value for _, value in found[:size]], more


def _check(last: str, scope: tuple[str, ...]) -> bytes:
    return blake2b("\0".join((*scope, last)).encode(), digest_size=_CHECK_BYTES, person=b"sarto-page").digest()
