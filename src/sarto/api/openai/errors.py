"""Errors in the form of OpenAI's API: `{"error": {"message", "type", "param", "code"}}`."""

from __future__ import annotations

import functools
import re
from collections.abc import Awaitable, Callable
from typing import Any

import orjson
from starlette.requests import Request
from starlette.types import ASGIApp

from sarto.api.http.responses import Reply
from sarto.errors import InvalidArgument, PayloadTooLarge, SartoError

ERRORS = "ChatError"
"""The name of this form in the API description."""
KINDS = {400: "invalid_request_error", 401: "authentication_error", 403: "permission_error", 404: "not_found_error",
         429: "rate_limit_error"}  # fmt: skip
PARAMETERS = (
    (re.compile(r"tuning_job\.\w+_spec\.training_dataset_uri"), "training_file"),
    (re.compile(r"tuning_job\.\w+_spec\.validation_dataset_uri"), "validation_file"),
    (re.compile(r"tuning_job\.\w+_spec\.hyper_parameters\.epoch_count"), "hyperparameters.n_epochs"),
    (re.compile(r"tuning_job\.\w+_spec\.hyper_parameters\.(\w+)"), r"hyperparameters.\1"),
    (re.compile(r"tuning_job\.(base_model|pre_tuned_model)(\..*)?"), "model"),
    (re.compile(r"tuning_job\.tuned_model_display_name"), "suffix"),
)
"""Fields of a tuning job, and the parameters of a fine-tuning job that they come from."""
Handler = Callable[[Request], Awaitable[ASGIApp]]


def in_openai_form(handler: Handler) -> Handler:
    """The handler, with errors in OpenAI's form."""

    @functools.wraps(handler)
    async def answer(request: Request) -> ASGIApp:
        try:
            return await handler(request)
        except SartoError as error:
            return refusal(error)

    return answer


def refusal(error: SartoError) -> Reply:
    headers = [(b"connection", b"close")] if isinstance(error, PayloadTooLarge) else []
    return Reply(orjson.dumps(error_body(error)), error.http_status, headers=headers)


def error_body(error: SartoError) -> dict[str, Any]:
    violations = error.violations if isinstance(error, InvalidArgument) else []
    kind = KINDS.get(error.http_status, "server_error")
    if not violations:
        return {"error": {"message": error.message, "type": kind, "param": None, "code": error.status.lower()}}
    rows = [(_parameter(each.field), each.description) for each in violations]
    param = rows[0][0]
    message = rows[0][1] if len(rows) == 1 else " ".join(f"{field}: {words}" for field, words in rows)
    code = "model_not_found" if param == "model" and "not" in rows[0][1] else error.status.lower()
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def _parameter(field: str) -> str:
    for pattern, name in PARAMETERS:
        if match := pattern.fullmatch(field):
            return match.expand(name)
    return field
