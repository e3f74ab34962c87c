"""Page sizes and page tokens. A token holds the last key of a page, so pages are stable under inserts. It is bound to
its list: a token that was cut, altered or used with another list is refused."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from sarto.errors import InvalidArgument

DEFAULT_SIZE = 100
MOST = 1000
SCAN = 200
_CHECK_BYTES = 8
AnyRow = sa.Row[*tuple[Any, ...]]


def page_size(requested: int) -> int:
    """0 means the default; larger values mean the maximum. Raises InvalidArgument for a negative number."""
    if requested < 0:
        raise InvalidArgument.field("page_size", f"{requested} is negative; use 0 for the default or at most {MOST}.")
    return min(requested or DEFAULT_SIZE, MOST)


def token(last: str, *scope: str) -> str:
    """The token for the page after `last`, for the list that `scope` (parent, filter, …) identifies."""
    return base64.urlsafe_b64encode(_check(last, scope) + last.encode()).decode().rstrip("=")


def start(text: str, *scope: str) -> str:
    """The key after which to continue; empty for an empty token. Raises InvalidArgument for a token of another
    origin."""
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
            "The page token is not one of this list; repeat the request with the same parent and filter, or drop it.",
        )
    return last


@dataclass(frozen=True)
class Page:
    """The requested page of a list: `size` rows after the one with `key`, from the start if it is empty."""

    size: int
    key: str
    scope: tuple[str, ...]

    @property
    def limit(self) -> int:
        """Rows to read: one more than are shown, to know whether there are more."""
        return self.size + 1

    def read(
        self, connection: Connection, query: sa.Select[Any], column: sa.Column[Any], *, ascending: bool = False
    ) -> tuple[Sequence[AnyRow], str]:
        """The rows of a query in descending order of a unique `column` that it selects, and the next page's token."""
        if self.key:
            key = column.type.python_type(self.key)
            query = query.where(column > key if ascending else column < key)
        order = column.asc() if ascending else column.desc()
        return self.cut(connection.execute(query.order_by(order).limit(self.limit)).all(), column.name)

    def cut(self, rows: Sequence[AnyRow], name: str) -> tuple[Sequence[AnyRow], str]:
        """The rows to show of at most `limit`, and the token of the next page; `name` is the column of their key."""
        return rows[: self.size], self.token(str(getattr(rows[self.size - 1], name))) if len(rows) > self.size else ""

    def token(self, last: str) -> str:
        return token(last, *self.scope)


def requested(size: int, page_token: str, *scope: str) -> Page:
    """The requested page. Raises InvalidArgument for a negative size, and for a token of another list than `scope`."""
    return Page(page_size(size), start(page_token, *scope), scope)


def within(table: sa.Table, project: str, location: str) -> sa.ColumnElement[bool]:
    """The condition that a row is of a project and a location; `-` stands for all locations."""
    ours = table.c.project == project
    return ours if location == "-" else sa.and_(ours, table.c.location == location)


def filtered(
    after: Callable[[str, int], list[tuple[str, dict[str, Any]]]],
    keep: Callable[[dict[str, Any]], bool],
    page: Page,
) -> tuple[list[dict[str, Any]], str]:
    """The values that `keep` keeps, for lists filtered in memory. `after(key, limit)` gives (key, value) pairs."""
    key, items = page.key, list[tuple[str, dict[str, Any]]]()
    while len(items) < page.limit:
        rows = after(key, SCAN)
        items.extend(row for row in rows if keep(row[1]))
        if len(rows) < SCAN:
            break
        key = rows[-1][0]
    more = page.token(items[page.size - 1][0]) if len(items) > page.size else ""
    return [value for _, value in items[: page.size]], more


def _check(last: str, scope: tuple[str, ...]) -> bytes:
    return blake2b("\0".join((*scope, last)).encode(), digest_size=_CHECK_BYTES, person=b"sarto-page").digest()
