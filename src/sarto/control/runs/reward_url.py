"""One call of a reward's URL (`cloudRunUri`), under the rules for judges elsewhere."""

from __future__ import annotations

import http.client
from typing import Any

import orjson

from sarto.control.runs.external_judge import KINDS
from sarto.errors import FailedPrecondition, Internal, Unavailable
from sarto.system import outbound_http

MOST_ANSWER_BYTES = 1 << 20
HEADERS = {"content-type": "application/json", "accept": "application/json", "user-agent": "sarto"}


def post(url: str, body: bytes, seconds: float, allow_private: bool) -> Any:
    """The JSON of its response. Raises SartoError: Unavailable and ResourceExhausted for temporary failures. Words of
    the response never appear in an error."""
    target = outbound_http.parse(url, "cloud_run_uri", allow_private, outbound_http.REWARD_SETTING)
    try:
        answer = outbound_http.post(target, body, HEADERS, seconds, MOST_ANSWER_BYTES)
    except (OSError, http.client.HTTPException) as error:
        raise Unavailable(f"The URL could not be reached: {type(error).__name__}.") from None
    if not 200 <= answer.status < 300:
        kind = KINDS.get(answer.status, Unavailable if answer.status >= 500 else FailedPrecondition)
        raise kind(f"The URL answered HTTP {answer.status}.")
    try:
        return orjson.loads(answer.body)
    except ValueError:
        raise Internal("The URL answered with something other than JSON.") from None
