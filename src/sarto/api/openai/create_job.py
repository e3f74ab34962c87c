"""Creates a tuning job from the body of OpenAI's create call."""

from __future__ import annotations

from functools import partial

from starlette.requests import Request

from sarto.api.http.requests import read_json
from sarto.api.http.services import in_thread, principal, services
from sarto.api.openai import job_request, stored_files
from sarto.api.openai.job_request import FineTuning
from sarto.api.openai.place import place_of
from sarto.control.access import authorization
from sarto.control.access.principal import Principal
from sarto.control.context import Control
from sarto.control.experiments import fine_tuning
from sarto.control.experiments.fine_tuning import MadeJob
from sarto.control.jobs import tuning_jobs
from sarto.control.models import tuned_names
from sarto.errors import InvalidArgument, NotFound, PermissionDenied
from sarto.names import LocationName, parse_resource

CREATE = "aiplatform.tuningJobs.create"


async def create(request: Request) -> MadeJob:
    """Unusable rows fail the job and not this call. Raises InvalidArgument with the parameter."""
    control, caller, place = services(request).control, principal(request), place_of(request)
    await in_thread(request, authorization.require, control.database, caller, CREATE, place.project)
    asked = job_request.read(await read_json(request))
    return await in_thread(request, _create, control, caller, place, asked)


def _create(control: Control, principal: Principal, place: LocationName, asked: FineTuning) -> MadeJob:
    number = fine_tuning.project_of(control, place).number
    endpoint = None
    if job_request.is_tuned(asked.model):
        try:
            endpoint = tuned_names.find(control, principal, asked.model)
        except (NotFound, PermissionDenied) as error:
            raise InvalidArgument.field("model", error.message) from None
    job, wishes = job_request.tuning_job(asked, partial(_uri, control, number), endpoint)
    stored = tuning_jobs.create(control, principal, place, job, wishes=wishes)
    return fine_tuning.get(control, principal, parse_resource(stored["name"], "tuningJobs"))


def _uri(control: Control, number: str, file: str, parameter: str) -> str:
    """The URI of a file for training. Raises InvalidArgument on the parameter."""
    if file.startswith("gs://"):
        return file
    try:
        stored = stored_files.find(control, number, file)
    except NotFound as error:
        raise InvalidArgument.field(parameter, error.message) from None
    purpose = stored_files.purpose_of(stored)
    if purpose != stored_files.FINE_TUNE:
        words = f'The purpose of {file} is "{purpose}"; upload it with "{stored_files.FINE_TUNE}".'
        raise InvalidArgument.field(parameter, words)
    return stored.uri
