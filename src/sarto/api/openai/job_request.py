"""The body of a fine-tuning job's create call as a `TuningJob` and its `Wishes`."""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sarto.api.openai.reading import json_object, text_of
from sarto.control.jobs.plan import Wishes
from sarto.control.models.tuned_names import PREFIX, SUFFIX, TunedEndpoint
from sarto.errors import InvalidArgument, Unimplemented
from sarto.names import ResourceName
from sarto.schema.tuning_jobs import SPECS, TuningJob

FIELDS = frozenset(
    "model training_file validation_file suffix seed metadata integrations method hyperparameters".split()
)
AUTO = "auto"
METHODS = {row.openai_name: row for row in SPECS.values() if row.openai_name}
"""The methods by their names in this API."""
DEFAULT_METHOD = next(iter(METHODS))
BOUNDS: dict[str, tuple[float, float]] = {
    "n_epochs": (1, 50),
    "batch_size": (1, 256),
    "learning_rate_multiplier": (1e-4, 1000),
    "beta": (0, 2),
}
INTEGERS = frozenset(("n_epochs", "batch_size"))
MOST_METADATA, KEY_CHARACTERS, VALUE_CHARACTERS = 16, 64, 512
MOST_INTEGRATIONS = 5
FILE_ID = re.compile(r"file-[A-Za-z0-9-]{1,80}")


@dataclass(frozen=True)
class FineTuning:
    """What a create call asks for. `hyperparameters` has the values that are not "auto"."""

    model: str
    training_file: str
    validation_file: str
    method: str
    hyperparameters: Mapping[str, int | float]
    extras: dict[str, Any] = field(default_factory=dict)
    seed: int | None = None


def read(body: Any) -> FineTuning:
    """Raises InvalidArgument with the parameter, Unimplemented for a method that is not built."""
    given = json_object(body, FIELDS)
    method, hyperparameters = _method(given)
    extras: dict[str, Any] = {"method": method, "model": text_of(given, "model")}
    suffix = given.get("suffix")
    if suffix is not None:
        if not isinstance(suffix, str) or not SUFFIX.fullmatch(suffix):
            raise InvalidArgument.field("suffix", 'Give 1 to 64 letters, digits, ".", "_" and "-".')
        extras["suffix"] = suffix
    if "metadata" in given:
        extras["metadata"] = _metadata(given["metadata"])
    if given.get("integrations"):
        extras["integrations"] = _integrations(given["integrations"])
    seed = given.get("seed")
    if seed is not None and (type(seed) is not int or not 0 <= seed < 2**31):
        raise InvalidArgument.field("seed", "Give an integer from 0 to 2147483647.")
    shown = {"seed": seed, "batch_size": hyperparameters.get("batch_size")}
    extras |= {name: value for name, value in shown.items() if value is not None}
    return FineTuning(
        extras["model"],
        _file(given, "training_file"),
        _file(given, "validation_file") if given.get("validation_file") else "",
        method,
        hyperparameters,
        extras,
        seed,
    )


def tuning_job(
    asked: FineTuning, uri_of: Callable[[str, str], str], endpoint: TunedEndpoint | None
) -> tuple[TuningJob, Wishes]:
    """The job of the tuning API. `uri_of` has the URI of a file id, for a parameter; `endpoint` is that of a tuned
    model to continue. Raises InvalidArgument."""
    row = METHODS[asked.method]
    values = asked.hyperparameters
    parameters = {
        "epochCount": values.get("n_epochs"),
        "learningRateMultiplier": values.get("learning_rate_multiplier"),
    }
    if row.default_beta is not None:
        parameters["beta"] = values.get("beta")
    spec: dict[str, Any] = {"trainingDatasetUri": uri_of(asked.training_file, "training_file")}
    if asked.validation_file:
        spec["validationDatasetUri"] = uri_of(asked.validation_file, "validation_file")
    spec["hyperParameters"] = {name: value for name, value in parameters.items() if value is not None}
    wire: dict[str, Any] = {row.key: spec, **_source(asked.model, endpoint)}
    if name := _display_name(asked, endpoint):
        wire["tunedModelDisplayName"] = name
    batch = values.get("batch_size")
    return TuningJob.read(wire, "tuning_job"), Wishes(None if batch is None else int(batch), asked.seed, asked.extras)


def _display_name(asked: FineTuning, endpoint: TunedEndpoint | None) -> str:
    """The suffix. A continued model gets a name of its own, since an equal one would make it a version of the model
    that it continues, and here each is a model that can be deleted alone."""
    suffix = str(asked.extras.get("suffix", ""))
    return suffix if endpoint is None else f"{suffix or 'continued'}-{secrets.token_hex(4)}"


def _source(model: str, endpoint: TunedEndpoint | None) -> dict[str, Any]:
    if endpoint is None:
        return {"baseModel": model}
    if not endpoint.model:
        raise InvalidArgument.field("model", f"The job of {model} is not finished; wait for it, and continue then.")
    name = endpoint.name
    version = ResourceName(name.project, name.location, "models", endpoint.model, str(endpoint.version))
    return {"preTunedModel": {"tunedModelName": str(version), "checkpointId": endpoint.checkpoint_id}}


def is_tuned(model: str) -> bool:
    return model.startswith(PREFIX)


def _file(given: dict[str, Any], name: str) -> str:
    value = text_of(given, name)
    if not value.startswith("gs://") and not FILE_ID.fullmatch(value):
        raise InvalidArgument.field(name, f'"{value[:100]}" is not the id of a file; upload it and give its id.')
    return value


def _method(given: dict[str, Any]) -> tuple[str, dict[str, int | float]]:
    """Its name, and the hyperparameters in either place."""
    old = given.get("hyperparameters")
    if "method" not in given:
        return DEFAULT_METHOD, _hyperparameters(old, "hyperparameters", DEFAULT_METHOD)
    method = given["method"]
    kind = method.get("type") if isinstance(method, dict) else None
    if kind == "reinforcement":
        raise Unimplemented(f"method.type: reinforcement is not supported here yet; use {' or '.join(METHODS)}.")
    if kind not in METHODS:
        raise InvalidArgument.field("method.type", f"It is one of {', '.join(METHODS)}.")
    others = [name for name in method if name not in ("type", kind)]
    if others:
        raise InvalidArgument.field(f"method.{others[0]}", f"The method is {kind}; give only its own settings.")
    settings = method.get(kind) or {}
    if not isinstance(settings, dict) or set(settings) - {"hyperparameters"}:
        raise InvalidArgument.field(f"method.{kind}", "It is an object with hyperparameters.")
    inside = settings.get("hyperparameters")
    if old is not None and inside is not None:
        raise InvalidArgument.field("hyperparameters", "Give them in method or here, not in both.")
    where = "hyperparameters" if inside is None else f"method.{kind}.hyperparameters"
    return kind, _hyperparameters(old if inside is None else inside, where, kind)


def _hyperparameters(value: Any, path: str, method: str) -> dict[str, int | float]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise InvalidArgument.field(path, "It is an object.")
    chosen: dict[str, int | float] = {}
    for name, one in value.items():
        if name not in BOUNDS or (name == "beta" and METHODS[method].default_beta is None):
            raise InvalidArgument.field(f"{path}.{name}", f"This is not a hyperparameter of {method} tuning here.")
        if one is None or one == AUTO:
            continue
        least, most = BOUNDS[name]
        is_number = type(one) in ((int,) if name in INTEGERS else (int, float))
        if not is_number or not least <= one <= most or (name == "beta" and one == 0):
            kind = "an integer" if name in INTEGERS else "a number"
            above = "above 0 and at most 2" if name == "beta" else f"from {least:g} to {most:g}"
            raise InvalidArgument.field(f"{path}.{name}", f'Give {kind} {above}, or "{AUTO}".')
        chosen[name] = one
    return chosen


def _metadata(value: Any) -> dict[str, str]:
    if not isinstance(value, dict) or len(value) > MOST_METADATA:
        raise InvalidArgument.field("metadata", f"It is an object of at most {MOST_METADATA} texts.")
    for key, text in value.items():
        if len(key) > KEY_CHARACTERS or not isinstance(text, str) or len(text) > VALUE_CHARACTERS:
            words = f"Keys have at most {KEY_CHARACTERS} characters; values are texts of at most {VALUE_CHARACTERS}."
            raise InvalidArgument.field("metadata", words)
    return dict(value)


def _integrations(value: Any) -> list[dict[str, Any]]:
    if not isinstance(value, list) or len(value) > MOST_INTEGRATIONS:
        raise InvalidArgument.field("integrations", f"It is a list of at most {MOST_INTEGRATIONS}.")
    for index, one in enumerate(value):
        if not isinstance(one, dict) or one.get("type") != "wandb" or not isinstance(one.get("wandb"), dict):
            raise InvalidArgument.field(f"integrations[{index}]", 'It is {"type": "wandb", "wandb": {…}}.')
    return value
