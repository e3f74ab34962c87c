"""Methods of OpenAI's fine-tuning API that are not supported yet, each refused by its name after the caller's right was
checked. A method leaves this list when it is built."""

from __future__ import annotations

from starlette.requests import Request
from starlette.types import ASGIApp

from sarto.api.http.routing import Handler, Route
from sarto.api.http.services import in_thread, principal, services
from sarto.api.openai.errors import ERRORS, in_openai_form, refusal
from sarto.api.openai.place import ROOTS, place_of
from sarto.control.access import authorization
from sarto.errors import Unimplemented

_JOB = "/fine_tuning/jobs/{job}"
_GRADERS = "/fine_tuning/alpha/graders"
_PERMISSIONS = "/fine_tuning/checkpoints/{checkpoint}/permissions"
_CANCEL_INSTEAD = "cancel the job, and continue from a checkpoint with a new one."
_BIND = "rights on models are given with `sarto iam bind`."
METHODS: tuple[tuple[str, str, str, str, str], ...] = (
    ("POST", f"{_JOB}/pause", "aiplatform.tuningJobs.cancel", "fine_tuning.jobs.pause", _CANCEL_INSTEAD),
    ("POST", f"{_JOB}/resume", "aiplatform.tuningJobs.cancel", "fine_tuning.jobs.resume", _CANCEL_INSTEAD),
    ("POST", f"{_GRADERS}/run", "aiplatform.tuningJobs.create", "fine_tuning.alpha.graders.run",
     "graders are not built in this form."),
    ("POST", f"{_GRADERS}/validate", "aiplatform.tuningJobs.create", "fine_tuning.alpha.graders.validate",
     "graders are not built in this form."),
    ("GET", _PERMISSIONS, "aiplatform.models.getIamPolicy", "fine_tuning.checkpoints.permissions.list", _BIND),
    ("POST", _PERMISSIONS, "aiplatform.models.setIamPolicy", "fine_tuning.checkpoints.permissions.create", _BIND),
    ("DELETE", f"{_PERMISSIONS}/{{grant}}", "aiplatform.models.setIamPolicy",
     "fine_tuning.checkpoints.permissions.delete", _BIND),
)  # fmt: skip
"""Verb, path, permission, the client's name of the method, and what to do instead."""


def _refusal(permission: str, method: str, instead: str) -> Handler:
    @in_openai_form
    async def refuse(request: Request) -> ASGIApp:
        database, caller = services(request).database, principal(request)
        await in_thread(request, authorization.require, database, caller, permission, place_of(request).project)
        raise Unimplemented(f"{method} is not supported yet: {instead}")

    return refuse


ROUTES = [
    Route(
        verb, f"{root}{path}", _refusal(permission, method, instead), permission, f"Refused: {method}",
        query=None, errors=ERRORS, refusal=refusal,
    )
    for root in ROOTS
    for verb, path, permission, method, instead in METHODS
]  # fmt: skip
