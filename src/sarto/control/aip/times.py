"""Times in the API's form: RFC 3339, from seconds since the epoch."""

from __future__ import annotations

from datetime import UTC, datetime

from sarto.schema.wire import format_time


def timestamp(seconds: float) -> str:
    """Seconds since 1970 in the API's form."""
    return format_time(moment(seconds))


def moment(seconds: float) -> datetime:
    """Seconds since 1970 as a time, to the microsecond."""
    return datetime.fromtimestamp(seconds, UTC)


def seconds(text: str) -> float:
    """Seconds since 1970 of a time in the API's form."""
    return datetime.fromisoformat(text).timestamp()
