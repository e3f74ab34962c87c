"""Messages of the relay: a run without network writes a request to a model elsewhere, and the service writes the
response."""

from __future__ import annotations

from typing import Any

from sarto.contract.common import Record


class RelayRequest(Record):
    """A line of `asked.jsonl`: a request to a model elsewhere, whose `request` is a GenerateContentRequest, or a JSON
    object for the URL of a reward."""

    number: int
    judge: str = ""
    url: str = ""
    seconds: float = 0.0
    """Most time for a call of a URL."""
    request: dict[str, Any]


class RelayResponse(Record):
    """A line of `answered.jsonl`, written by the service: a GenerateContentResponse, the JSON of a URL as
    `body`, or the status of an error."""

    number: int
    response: dict[str, Any] | None = None
    error: dict[str, Any] | None = None
