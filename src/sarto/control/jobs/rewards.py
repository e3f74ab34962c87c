"""The rewards of a request: checks of its config, and the models that it names as autoraters."""

from __future__ import annotations

from sarto.control.access import authorization
from sarto.control.access.principal import Principal
from sarto.control.context import Control
from sarto.control.models import resolution
from sarto.control.models.resolution import ResolvedModel
from sarto.errors import FieldViolation, InvalidArgument, SartoError
from sarto.names import LocationName
from sarto.rewards.validation import COMPOSITE, SINGLE, config_faults, judges_of, references_of
from sarto.schema.rewards import (
    CompositeReinforcementTuningRewardConfig,
    SingleReinforcementTuningRewardConfig,
    ValidateRewardRequest,
)

CREATE = "aiplatform.tuningJobs.create"
Autoraters = dict[str, ResolvedModel | None]
"""Models of this server by their names in a config; None for one elsewhere."""


def check(
    control: Control, principal: Principal, parent: LocationName, request: ValidateRewardRequest
) -> tuple[str, Autoraters]:
    """The project's number, and the autoraters of a request to validate. Raises InvalidArgument with every fault."""
    project = authorization.require(control.database, principal, CREATE, parent.project).number
    faults, autoraters = check_config(
        control, principal, request.single_reward_config, request.composite_reward_config, ""
    )
    if request.sample_response is None or not request.sample_response.parts:
        faults.append(FieldViolation("sample_response", "Required field is not set: give the answer to score."))
    if request.example is None or not request.example.contents:
        faults.append(FieldViolation("example.contents", "Required field is not set: give the prompt of the answer."))
    config = request.config
    if config is not None and request.example is not None and not faults:
        for key in sorted(references_of(config) - request.example.references.keys()):
            words = f'The reward names {{{{references.{key}}}}}, and the example has no reference "{key}".'
            faults.append(FieldViolation("example.references", words))
    if faults:
        raise InvalidArgument.of(faults)
    return project, autoraters


def check_config(
    control: Control,
    principal: Principal,
    single: SingleReinforcementTuningRewardConfig | None,
    composite: CompositeReinforcementTuningRewardConfig | None,
    path: str,
) -> tuple[list[FieldViolation], Autoraters]:
    """Every fault of a config, and its autoraters, resolved with the caller's rights."""
    private_urls = control.limits.reward_private_addresses
    faults = list(config_faults(single, composite, path, private_urls=private_urls))
    autoraters: Autoraters = {}
    config = single or composite
    where = SINGLE if single is not None else COMPOSITE
    for field, name in judges_of(config, f"{path}.{where}" if path else where) if config is not None else ():
        if name in control.judges:
            autoraters[name] = None
        elif name:
            try:
                autoraters[name] = found = resolution.resolve(control, principal, name)
                control.base(found.weights)
            except SartoError as error:
                known = f" Judges elsewhere: {', '.join(sorted(control.judges))}." if control.judges else ""
                faults.append(FieldViolation(field, f"The autorater cannot be used: {error.message}{known}"))
    return faults, autoraters
