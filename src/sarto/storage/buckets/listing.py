"""One page of a bucket's objects. Prefixes are folded at the delimiter, and each folded group is skipped by one index
seek."""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from sarto.errors import InvalidArgument
from sarto.storage.database.tables import stored_object

_BATCH = 1000
_LAST = chr(0x10FFFF)


@dataclass(frozen=True)
class Query:
    """Parameters of a list. `start` is included, `end` is not; a `page_token` continues after its name."""

    bucket: str
    prefix: str
    delimiter: str
    start: str
    end: str
    limit: int
    page_token: str
    include_trailing_delimiter: bool


def page(connection: Connection, query: Query) -> tuple[list[sa.Row[Any]], tuple[str, ...], str]:
    """Rows, common prefixes and the token of the next page (empty at the end). `limit` counts rows and prefixes."""
    rows: list[sa.Row[Any]] = []
    prefixes: list[str] = []
    last = ""
    after, folded = _read_token(query.page_token)
    while True:
        batch = _seek(connection, query, after, folded)
        for row in batch:
            if folded and row.name.startswith(folded):
                continue
            if len(rows) + len(prefixes) >= query.limit:
                return rows, tuple(prefixes), _token(last, folded)
            folded, last = _fold(query, row.name), row.name
            if folded:
                prefixes.append(folded)
            if not folded or (query.include_trailing_delimiter and row.name == folded):
                rows.append(row)
        if len(batch) < _BATCH:
            return rows, tuple(prefixes), ""
        after = batch[-1].name


def by_name(
    connection: Connection, bucket: str, prefix: str, after: str, limit: int, *, ascending: bool
) -> list[sa.Row[Any]]:
    """At most `limit` rows whose names have the prefix, in the order of names or in its reverse, after the one of the
    name `after` (empty: from the start)."""
    name = stored_object.c.name
    query = sa.select(stored_object).where(stored_object.c.bucket == bucket, name >= prefix, name < _successor(prefix))
    if after:
        query = query.where(name > after if ascending else name < after)
    return list(connection.execute(query.order_by(name if ascending else name.desc()).limit(limit)))


def _seek(connection: Connection, query: Query, after: str, folded: str) -> list[sa.Row[Any]]:
    name = stored_object.c.name
    statement = sa.select(stored_object).where(stored_object.c.bucket == query.bucket)
    lowest = max(query.prefix, query.start, _successor(folded) if folded else "")
    if lowest:
        statement = statement.where(name >= lowest)
    if after:
        statement = statement.where(name > after)
    for highest in (query.end, _successor(query.prefix)):
        if highest:
            statement = statement.where(name < highest)
    return list(connection.execute(statement.order_by(name).limit(_BATCH)))


def _fold(query: Query, name: str) -> str:
    """The common prefix of this name, or nothing."""
    if not query.delimiter:
        return ""
    at = name.find(query.delimiter, len(query.prefix))
    return name[: at + len(query.delimiter)] if at >= 0 else ""


def _successor(prefix: str) -> str:
    """The smallest text above every text that begins with `prefix`; empty if there is none."""
    head = prefix.rstrip(_LAST)
    if not head:
        return ""
    following = ord(head[-1]) + 1
    return head[:-1] + chr(0xE000 if following == 0xD800 else following)  # no text holds a surrogate


def _token(after: str, folded: str) -> str:
    return base64.urlsafe_b64encode(f"{'p' if folded else 'o'}{folded or after}".encode()).decode()


def _read_token(token: str) -> tuple[str, str]:
    """(name to continue after, prefix to continue after)."""
    if not token:
        return "", ""
    try:
        text = base64.b64decode(token, altchars=b"-_", validate=True).decode()
    except (binascii.Error, UnicodeDecodeError, ValueError):
        raise InvalidArgument('"pageToken" is not a token of this server; leave it out to start again.') from None
    kind, name = text[:1], text[1:]
    if kind not in ("o", "p") or not name or "\0" in name:
        raise InvalidArgument('"pageToken" is not a token of this server; leave it out to start again.')
    return (name, "") if kind == "o" else ("", name)
