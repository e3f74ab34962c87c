"""`docs/support.md`: the support of every field of a TuningJob, and the list of methods.

Generated from the schema, the rules of validation and the route table.
"""

from __future__ import annotations

import types
from collections.abc import Iterator
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic.alias_generators import to_camel

from sarto.api.http.routing import Route
from sarto.api.routes import ROUTES
from sarto.api.vertex import unimplemented
from sarto.cli.docs.differences import DIFFERENCES
from sarto.control.jobs.validation import OUTPUT_ONLY, UNBUILT_SPECS
from sarto.schema.tuning_jobs import SPECS, EncryptionSpec, PreTunedModel
from sarto.schema.tuning_jobs import TuningJob as Job
from sarto.schema.wire import Message, ProtoEnum

HEAD = """# What is supported

Generated from the schema, the rules of validation and the route table by `make docs`. *Supported*: the field works as
documented. *Refused*: a request that sets it gets 400 with the name of the field. *Output*: the service sets it, and
its value in a request is ignored. Fields that are not listed do not exist; a request with one gets 400 with every
unknown name. Calls and the rules of JSON are in [api.md](api.md).

## Fields of a TuningJob

| Field | Type | | |
|---|---|---|---|
"""
METHODS = """
## Methods

Under `/v1/` and `/v1beta1/` alike, and over [gRPC](api.md#grpc) under their official names. Storage, tokens,
experiments and the rest are in [routes.md](routes.md).

| Method | | Does |
|---|---|---|
"""
UNBUILT = """
## Documented and not implemented

Each gets 400 with status `UNIMPLEMENTED`, its name and an alternative.

| Method | | Instead |
|---|---|---|
"""
DIFFERENT = """
## Different on purpose

The documentation or the behaviour of the hosted service, and the behaviour here.

| There | Here | Why |
|---|---|---|
"""
SHOWN = ("tuningJobs", "models", "endpoints", "operations", "batchPredictionJobs")
OPENED = (
    PreTunedModel, EncryptionSpec, *(row.message for row in SPECS.values()),
    *(type(row.message().parameters) for row in SPECS.values()),
)  # fmt: skip
"""Messages whose fields have lines of their own."""
TYPES = {"str": "string", "int": "integer", "float": "number", "bool": "boolean", "datetime": "time", "Any": "value"}
REFUSED: dict[str, str] = {}
NOTES: dict[str, str] = {
    "gcs_metrics_uri": "Never set: metrics are read through `experiment`.",
    "pipeline_job": "Never set: there are no pipelines.",
    "satisfies_pzs": "Never set.",
    "satisfies_pzi": "Never set.",
    "name": "The id has 19 digits and grows with time.",
    "state": "Never QUEUED, PAUSED, EXPIRED, UPDATING or PARTIALLY_SUCCEEDED.",
    "experiment": "Absent until the job runs.",
    "tuning_job_metadata": "Beside Google's counts: chosen parameters with reasons, speed, warnings, and the"
    " versions of the datasets.",
    "tuned_model": "`endpoint` is that of the checkpoint that was the default when the job ended.",
    "base_model": "A name of the catalogue, bare or as `publishers/google/models/X`; or a tuned model's name.",
    "pre_tuned_model": "Tunes a tuned model further; its model gets a new version unless the display name is another.",
    "custom_base_model": "Open models: a `gs://` folder of config.json, safetensors, tokenizer.json and chat template,"
    " of the architecture that `baseModel` names. Converted to a base once, by content; safetensors only.",
    "tuned_model_display_name": "At most 128 characters; generated when it is absent.",
    "labels": "At most 64, copied to model and endpoints; the prefix `sarto-` is reserved.",
    "output_uri": "Required for open models, which are copied there; refused for the others.",
    "service_account": "Must exist, have the tuning role, and be one as which you may act; the run has its rights"
    " in buckets. See [security.md](security.md).",
    "encryption_spec.kms_key_name": "A key of the job's region that the project's service agent may use. All that"
    " the job leaves is encrypted under it; see [security.md](security.md#what-jobs-leave).",
    "evaluation_config": "Accepted here too, returned only in the spec; see [evaluation.md](evaluation.md).",
    "supervised_tuning_spec.training_dataset_uri": "`gs://BUCKET/FILE.jsonl`; a managed dataset is refused by name.",
    "supervised_tuning_spec.tuning_mode": "`TUNING_MODE_FULL` for open models on processors;"
    " see [api.md](api.md#full-tuning).",
    "supervised_tuning_spec.hyper_parameters.learning_rate": "Open models only, and not beside the multiplier.",
    "supervised_tuning_spec.hyper_parameters.batch_size": "Open models only.",
    "supervised_tuning_spec.hyper_parameters.adapter_size": "One of the base model's; a continued model keeps its own.",
    "preference_optimization_spec": "Sigmoid DPO; see [data.md](data.md#preference-pairs).",
    "preference_optimization_spec.training_dataset_uri": "`gs://BUCKET/FILE.jsonl` of pairs, text only.",
    "preference_optimization_spec.hyper_parameters.beta": "From 0 to 10; 0.1 when it is absent. Smaller lets the model"
    " move further from the one it began as; with 0 nothing is learned, and the data report says so.",
    "preference_optimization_spec.hyper_parameters.adapter_size": "As for supervised tuning.",
    "distillation_spec": "See [data.md](data.md#distillation).",
    "distillation_spec.prompt_dataset_uri": "`gs://BUCKET/FILE.jsonl` of prompts, text only.",
    "distillation_spec.training_dataset_uri": "Deprecated: `promptDatasetUri`.",
    "distillation_spec.student_model": "Deprecated: the job's `baseModel`.",
    "distillation_spec.pipeline_root_directory": "Deprecated: the folder of the labelled data, without an `outputUri`.",
    "distillation_spec.base_teacher_model": "A base model of this server, or a configured model elsewhere.",
    "distillation_spec.tuned_teacher_model_source": "A tuned model or an endpoint of this server.",
    "distillation_spec.hyper_parameters.generation_config": "`temperature`, `topP`, `topK`, `candidateCount` and"
    " `thinkingConfig`; others are refused.",
    "distillation_spec.hyper_parameters.sft_loss_weight_multiplier": "From 0 to 1,000; asks for token level.",
    "distillation_spec.hyper_parameters.learning_rate": "As for supervised tuning, and so are the others.",
    "distillation_spec.tuning_mode": "As for supervised tuning; all weights learn from answers alone.",
    "reinforcement_tuning_spec": "GRPO on answers of the model itself; see"
    " [data.md](data.md#prompts-for-reinforcement-tuning).",
    "reinforcement_tuning_spec.training_dataset_uri": "`gs://BUCKET/FILE.jsonl` of prompts, text only.",
    "reinforcement_tuning_spec.hyper_parameters.step_count": "At most 500, and not beside `epochCount`.",
    "reinforcement_tuning_spec.hyper_parameters.samples_per_prompt": "Times `batchSize` a multiple of 16, at most"
    " 8,192.",
    "reinforcement_tuning_spec.hyper_parameters.learning_rate_multiplier": "From 0.25 to 4.",
    "reinforcement_tuning_spec.hyper_parameters.thinking_level": "`MINIMAL` only: answers have no thoughts yet.",
    "reinforcement_tuning_spec.hyper_parameters.thinking_budget": "0 only.",
}


def page() -> str:
    fields = "".join(f"| `{path}` | {kind} | {verdict} | {note} |\n" for path, kind, verdict, note in fields_of())
    methods = "".join(_method(route) for route in ROUTES if _is_shown(route))
    refused = "".join(_unbuilt(*group) for group in unimplemented.GROUPS)
    return HEAD + fields + METHODS + methods + UNBUILT + refused + DIFFERENT + _differences()


def fields_of() -> Iterator[tuple[str, str, str, str]]:
    """JSON path, type, verdict and note of every field of a TuningJob."""
    for path, kind in _walk(Job, ""):
        json_path = ".".join(to_camel(name) for name in path.split("."))
        yield json_path, _type_name(kind), _verdict(path), REFUSED.get(path) or NOTES.get(path, "")


def _walk(message: type[Message], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, field in message.model_fields.items():
        path, kind = prefix + name, _plain(field.annotation)
        yield path, kind
        if kind in OPENED:
            yield from _walk(kind, f"{path}.")


def _verdict(path: str) -> str:
    if path in OUTPUT_ONLY:
        return "output"
    return "refused" if path in UNBUILT_SPECS or path in REFUSED else "supported"


def _plain(kind: Any) -> Any:
    """The type without `| None`."""
    if get_origin(kind) in (Union, types.UnionType):
        return next(one for one in get_args(kind) if one is not type(None))
    return kind


def _type_name(kind: Any) -> str:
    if get_origin(kind) is Annotated and get_origin(kind.__origin__) is dict:
        kind = kind.__origin__
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is list:
        return f"list of {_type_name(arguments[0])}"
    if origin is dict or kind is dict:
        return "object"
    if isinstance(kind, type) and issubclass(kind, ProtoEnum | Message):
        return kind.__name__
    name = getattr(arguments[0] if arguments else kind, "__name__", "value")
    return TYPES.get(name, name)


def _is_shown(route: Route) -> bool:
    last = route.path.rpartition("/locations/{location}/")[2]
    return (
        route not in unimplemented.ROUTES and last != route.path and last.partition("/")[0].partition(":")[0] in SHOWN
    )


def _method(route: Route) -> str:
    path = route.path.rpartition("/{location}/")[2]
    refused = route.summary.startswith("Refused: ")
    does = route.summary.removeprefix("Refused: ")
    return f"| `{route.method} {path}` | {'refused' if refused else 'supported'} | {does} |\n"


def _unbuilt(service: str, instead: str, base: str, methods: dict[str, str]) -> str:
    path = base.removeprefix("/{api}").removeprefix("/projects/{project}/locations/{location}").removeprefix("/")
    rows = ((name, *rule.split(" ", 1)) for name, rule in methods.items())
    return "".join(f"| {service}.{name} | `{method} {path}{rest}` | {instead} |\n" for name, method, rest in rows)


def _differences() -> str:
    return "".join(f"| {there} | {here} | {why} |\n" for there, here, why in DIFFERENCES)
