"""Bodies, queries and pages of OpenAI's API: objects of known fields, and lists with a cursor `after`."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request

from sarto.api.http.requests import query
from sarto.errors import FieldViolation, InvalidArgument

MOST_TEXT = 1000
_CURSOR = re.compile(r"[A-Za-z0-9_-]{1,80}")


def json_object(body: Any, known: Collection[str]) -> dict[str, Any]:
    """The fields of a JSON object that are not null. Raises InvalidArgument for other values and for unknown names."""
    if not isinstance(body, dict):
        raise InvalidArgument("The body must be a JSON object.")
    if unknown := [name for name in body if name not in known]:
        raise InvalidArgument.of(FieldViolation(name, "This parameter is not supported.") for name in sorted(unknown))
    return {name: value for name, value in body.items() if value is not None}


def text_of(body: Mapping[str, Any], name: str, default: str | None = None) -> str:
    """A text of the body; without a default it is required. Raises InvalidArgument."""
    value = body.get(name, default)
    if not isinstance(value, str) or (not value and default is None) or len(value) > MOST_TEXT:
        raise InvalidArgument.field(name, f"Give a text of at most {MOST_TEXT} characters.")
    return value


@dataclass(frozen=True)
class Page:
    """The requested page: at most `limit` rows after the row with the id `after`. `more` has other parameters."""

    after: str
    limit: int
    more: Mapping[str, str]

    def cut(self, rows: Sequence[Mapping[str, Any]], *, with_ends: bool = True) -> dict[str, Any]:
        """The list object for up to `limit + 1` rows."""
        shown = list(rows[: self.limit])
        ends = {"first_id": shown[0]["id"], "last_id": shown[-1]["id"]} if shown else dict.fromkeys(_ENDS)
        whole = {"object": "list", "data": shown, "has_more": len(rows) > self.limit}
        return whole | (ends if with_ends else {})

    def of(self, rows: Sequence[Mapping[str, Any]], *, with_ends: bool = True) -> dict[str, Any]:
        """The list object for all rows there are. Raises InvalidArgument for a cursor that is none of them."""
        start = 0
        if self.after:
            ids = [row["id"] for row in rows]
            if self.after not in ids:
                raise InvalidArgument.field("after", f'There is no "{self.after}" in this list.')
            start = ids.index(self.after) + 1
        return self.cut(rows[start : start + self.limit + 1], with_ends=with_ends)


_ENDS = ("first_id", "last_id")


def page_of(request: Request, default: int, most: int, also: Collection[str] = ()) -> Page:
    """The page that the query names; `also` are further parameters. Raises InvalidArgument."""
    values = dict(query(request))
    more = {name: values.pop(name) for name in list(values) if name in also or name.startswith("metadata")}
    text, after = values.pop("limit", ""), values.pop("after", "")
    if values:
        raise InvalidArgument.of(FieldViolation(name, "This parameter is not known.") for name in sorted(values))
    if text and not (text.isascii() and text.isdigit() and len(text) < 6 and 1 <= int(text) <= most):
        raise InvalidArgument.field("limit", f'"{text[:20]}" is not a number from 1 to {most:,}.')
    if after and not _CURSOR.fullmatch(after):
        raise InvalidArgument.field("after", "It is the id of the last row of the page before.")
    return Page(after, int(text) if text else default, more)
