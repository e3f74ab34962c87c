"""validateReinforcementTuningReward: checks of the request, with the checks of a job's create."""

from __future__ import annotations

from sarto.control.access import authorization
from sarto.control.access.principal import Principal
from sarto.control.context import Control
from sarto.errors import FieldViolation, InvalidArgument
from sarto.names import LocationName
from sarto.rewards.validation import config_faults, references_of
from sarto.schema.rewards import RewardConfig, ValidateRewardRequest

CREATE = "aiplatform.tuningJobs.create"


def check(
    control: Control, principal: Principal, parent: LocationName, request: ValidateRewardRequest
) -> tuple[str, RewardConfig]:
    """The project's number, and the config of the request. Raises InvalidArgument with every fault."""
    project = authorization.require(control.database, principal, CREATE, parent.project).number
    faults = list(config_faults(request.single_reward_config, request.composite_reward_config, ""))
    if request.parent and request.parent.split("/")[:1] != ["projects"]:
        faults.append(FieldViolation("parent", "The parent stands in the URL; leave it out of the body."))
    if request.sample_response is None or not request.sample_response.parts:
        faults.append(FieldViolation("sample_response", "Required field is not set: give the answer to score."))
    if request.example is None or not request.example.contents:
        faults.append(FieldViolation("example.contents", "Required field is not set: give the prompt of the answer."))
    config = request.single_reward_config or request.composite_reward_config
    if config is not None and not faults:
        assert request.example is not None
        for key in sorted(references_of(config) - request.example.references.keys()):
            words = f'The reward names {{{{references.{key}}}}}, and the example has no reference "{key}".'
            faults.append(FieldViolation("example.references", words))
    if faults:
        raise InvalidArgument.of(faults)
    assert config is not None
    return project, config
