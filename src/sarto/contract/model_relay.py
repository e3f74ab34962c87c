"""Messages of the relay: a run without network writes a request to a model elsewhere, and the service writes the
response."""

from __future__ import annotations

from typing import Any

from sarto.contract.common import Record


class RelayRequest(Record):
    """A line of `asked.jsonl`: a request to a model elsewhere. `request` is a GenerateContentRequest."""

    number: int
    judge: str
    request: dict[str, Any]


class RelayResponse(Record):
    """A line of `answered.jsonl`, written by the service: a GenerateContentResponse, or the status of an error."""

    number: int
    response: dict[str, Any] | None = None
    error: dict[str, Any] | None = None
