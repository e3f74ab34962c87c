"""`sarto tune` and `sarto jobs …`: create tuning jobs, follow them, list and cancel."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from sarto.cli import output, progress
from sarto.cli.client import ApiError, Client
from sarto.cli.datasets.data import MapFile, Yes
from sarto.cli.datasets.upload import upload
from sarto.cli.options import (
    DEFAULT_BASE_MODEL,
    DEFAULT_METHOD,
    AsJson,
    BaseModel,
    Limit,
    Method,
    TuningModeOption,
    client,
    method_row,
    resource,
    tuning_mode_name,
)
from sarto.errors import FailedPrecondition, InvalidArgument, Unavailable
from sarto.schema.tuning_jobs import RANKS, AdapterSize, dataset_key, dataset_of, spec_of

app = typer.Typer(help="Tuning jobs: list, describe, watch, cancel.", no_args_is_help=True)
Job = Annotated[str, typer.Argument(help="Job id, or its full resource name.")]
Beta = Annotated[
    float | None, typer.Option(help="Preference tuning: how strongly the model is held to the one it began as.")
]
SftLossWeight = Annotated[
    float | None, typer.Option(help="Distillation: weight of the answers beside the teacher's distribution.")
]
INTERRUPTED_EXIT = 130
AWAY_SECONDS, RETRY_SECONDS = 900.0, 2.0
NUMBERS = {
    "epochs": "epochCount", "learning_rate_multiplier": "learningRateMultiplier", "learning_rate": "learningRate",
    "batch_size": "batchSize", "beta": "beta", "steps": "stepCount", "samples": "samplesPerPrompt",
    "answer_tokens": "maxOutputTokens",
}  # fmt: skip
"""The hyper-parameter of each option of `tune` that is a number."""
RewardFile = Annotated[
    str, typer.Option("--reward", help="Reinforcement tuning: JSON file of the reward, as its config of the API.")
]
COLUMNS = ("JOB", "STATE", "BASE MODEL", "TUNED MODEL", "CREATED")


def tune(
    context: typer.Context,
    training: Annotated[str, typer.Argument(metavar="TRAIN", help="Training data: a local file or folder, or gs://….")],
    validation: Annotated[str, typer.Option("--validation", help="Validation data: a file, or gs://….")] = "",
    method: Method = DEFAULT_METHOD,
    beta: Beta = None,
    teacher: Annotated[str, typer.Option(help="Distillation: the model that answers the prompts.")] = "",
    temperature: Annotated[float | None, typer.Option(help="Distillation: of the answers; unset is greedy.")] = None,
    candidates: Annotated[int | None, typer.Option(help="Distillation: answers to each prompt.")] = None,
    sft_loss_weight: SftLossWeight = None,
    reward: RewardFile = "",
    steps: Annotated[int | None, typer.Option(help="Reinforcement tuning: number of steps.")] = None,
    samples: Annotated[int | None, typer.Option(help="Reinforcement tuning: answers to each prompt.")] = None,
    answer_tokens: Annotated[int | None, typer.Option(help="Reinforcement tuning: most tokens of an answer.")] = None,
    model: BaseModel = DEFAULT_BASE_MODEL,
    name: Annotated[str, typer.Option("--name", help="Display name of the tuned model.")] = "",
    epochs: Annotated[int | None, typer.Option(help="Passes over the data; unset lets the service choose.")] = None,
    tuning_mode: TuningModeOption = "adapter",
    adapter_size: Annotated[int | None, typer.Option(help="LoRA rank: 1, 2, 4, 8, 16 or 32.")] = None,
    learning_rate_multiplier: Annotated[float | None, typer.Option(help="Times the model's own rate.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Absolute rate; open models only.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Rows a step; open models only.")] = None,
    output_uri: Annotated[str, typer.Option(help="gs:// folder for the weights; open models only.")] = "",
    tuned_model: Annotated[str, typer.Option("--from", help="Tune this tuned model further.")] = "",
    checkpoint: Annotated[str, typer.Option(help="With --from: the checkpoint to start at.")] = "",
    service_account: Annotated[str, typer.Option(help="Account whose rights in buckets the run has.")] = "",
    kms_key: Annotated[str, typer.Option(help="Customer key that encrypts data, job and model: projects/P/….")] = "",
    label: Annotated[list[str] | None, typer.Option(help="Repeatable.", metavar="KEY=VALUE")] = None,
    map_file: MapFile = "",
    yes: Yes = False,
    last_checkpoint_only: Annotated[bool, typer.Option(help="Keep only the last checkpoint.")] = False,
    wait: Annotated[bool, typer.Option("--watch/--no-watch", help="Follow the job until it ends.")] = True,
    as_json: AsJson = False,
) -> None:
    """Create a tuning job and watch it. Local files of other forms are converted, and uploaded with their mapping."""
    row = method_row(method)
    with client(context) as api:
        data = upload(context, api, training, validation, map_file=map_file, yes=yes, kms_key=kms_key)
        numbers = numbers_of(context, adapter_size) | answering(temperature, candidates, sft_loss_weight)
        spec = {
            dataset_key(row): data.training,
            "validationDatasetUri": data.validation,
            "tuningMode": tuning_mode_name(tuning_mode) if tuning_mode != "adapter" else None,
            "exportLastCheckpointOnly": last_checkpoint_only,
            **(teacher_of(api, teacher) | reward_of(reward)),
            "hyperParameters": {key: value for key, value in numbers.items() if value is not None},
        }
        body = {
            row.key: {key: value for key, value in spec.items() if value},
            **source(api, model, tuned_model, checkpoint),
            "tunedModelDisplayName": name,
            "outputUri": output_uri,
            "serviceAccount": service_account,
            "encryptionSpec": {"kmsKeyName": kms_key} if kms_key else None,
            "labels": labels(label or []),
        }
        job = api.post(f"/v1/{api.parent}/tuningJobs", {key: value for key, value in body.items() if value})
        follow_new(api, job, wait, as_json)


def follow_new(api: Client, job: dict[str, Any], wait: bool, as_json: bool) -> None:
    """Show a job that has just been created, or follow it."""
    if not wait:
        show(job, as_json)
        return
    output.messages().print(Text(f"Created {job['name']}"))
    follow(api, job["name"], as_json)


def source(api: Client, model: str, tuned_model: str, checkpoint: str) -> dict[str, Any]:
    """The source-model fields of a job: a base model, or a tuned one with its checkpoint."""
    if not tuned_model:
        if checkpoint:
            raise InvalidArgument("--checkpoint needs --from, the tuned model it is a checkpoint of.")
        return {"baseModel": model}
    source = {"tunedModelName": resource(api, "models", tuned_model), "checkpointId": checkpoint}
    return {"preTunedModel": {key: value for key, value in source.items() if value}}


def teacher_of(api: Client, teacher: str) -> dict[str, str]:
    """The field of the teacher: a resource name or a bare number is that of a tuned model."""
    if teacher.isdigit() or (teacher.startswith("projects/") and "/publishers/" not in teacher):
        return {"tunedTeacherModelSource": resource(api, "models", teacher)}
    return {"baseTeacherModel": teacher} if teacher else {}


def answering(temperature: float | None, candidates: int | None, weight: float | None) -> dict[str, Any]:
    """The hyper-parameters of a distillation."""
    values = {"temperature": temperature, "candidateCount": candidates}
    config = {name: value for name, value in values.items() if value is not None}
    return {"generationConfig": config or None, "sftLossWeightMultiplier": weight}


def numbers_of(context: typer.Context, adapter_size: int | None) -> dict[str, Any]:
    """The hyper-parameters of the options that are numbers."""
    numbers = {field: context.params[option] for option, field in NUMBERS.items()}
    return numbers | {"adapterSize": adapter_size_name(adapter_size)}


def reward_of(path: str) -> dict[str, Any]:
    """The field of a reward from its file: one reward, or a composite of several."""
    if not path:
        return {}
    try:
        config = json.loads(Path(path).read_bytes())
    except (OSError, ValueError) as error:
        raise InvalidArgument(f"--reward {path} cannot be read as JSON: {error}") from None
    if not isinstance(config, dict):
        raise InvalidArgument(f"--reward {path} is not a JSON object; write a reward config of the API.")
    is_composite = {"weightedRewardConfigs", "weighted_reward_configs"} & config.keys()
    return {"compositeRewardConfig" if is_composite else "singleRewardConfig": config}


def adapter_size_name(rank: int | None) -> str | None:
    """`ADAPTER_SIZE_FOUR` of 4."""
    if rank is None:
        return None
    if rank not in RANKS.values() or rank == 0:
        raise InvalidArgument(f"--adapter-size is 1, 2, 4, 8, 16 or 32, not {rank}.")
    return str(AdapterSize.of_rank(rank).value)


def labels(pairs: list[str]) -> dict[str, str]:
    by_key = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
    if len(by_key) != len(pairs):
        raise InvalidArgument("--label is written KEY=VALUE, each key once.")
    return by_key


@app.command("list")
def list_jobs(
    context: typer.Context,
    filter_: Annotated[
        str, typer.Option("--filter", help='Such as state="JOB_STATE_RUNNING" or labels.team="x".')
    ] = "",
    limit: Limit = 50,
    as_json: AsJson = False,
) -> None:
    """Tuning jobs of the project and location, newest first."""
    with client(context) as api:
        query = {"filter": filter_} if filter_ else {}
        jobs = api.pages(f"/v1/{api.parent}/tuningJobs", "tuningJobs", limit, **query)
    if as_json:
        output.print_json(jobs)
        return
    rows = (
        {
            "JOB": output.short_id(job["name"]),
            "STATE": job["state"].removeprefix("JOB_STATE_"),
            "BASE MODEL": job.get("baseModel", ""),
            "TUNED MODEL": job.get("tunedModelDisplayName", ""),
            "CREATED": output.local_time(job["createTime"]),
        }
        for job in jobs
    )
    none = (
        "No tuning job matches the filter."
        if filter_
        else "No tuning jobs here yet. `sarto tune TRAIN.jsonl` creates one."
    )
    output.print_rows(rows, COLUMNS, none)


@app.command()
def describe(context: typer.Context, job: Job, as_json: AsJson = False) -> None:
    """One job: state, data, parameters, tuned model and checkpoints, error."""
    with client(context) as api:
        job_resource = api.get(f"/v1/{resource(api, 'tuningJobs', job)}")
        why = "" if as_json else waits_for(api, job_resource)
    show(job_resource, as_json)
    if why:
        output.print_facts({"Why": why})


@app.command()
def watch(context: typer.Context, job: Job, as_json: AsJson = False) -> None:
    """Follow a job until it ends. Exit status 0 only if it succeeded."""
    with client(context) as api:
        follow(api, resource(api, "tuningJobs", job), as_json)


@app.command()
def cancel(context: typer.Context, job: Job) -> None:
    """Cancel a job. It ends as CANCELLED within seconds; an ended job is unchanged."""
    with client(context) as api:
        name = resource(api, "tuningJobs", job)
        api.post(f"/v1/{name}:cancel")
        state = api.get(f"/v1/{name}")["state"]
    output.console().print(f"{output.short_id(name)} is {state.removeprefix('JOB_STATE_')}")


def follow(api: Client, name: str, as_json: bool) -> None:
    """Watch to the end, show the job, and raise FailedPrecondition unless it succeeded."""
    try:
        job = progress.watch(states(api, name), output.messages())
    except KeyboardInterrupt:
        output.messages().print(f"The job continues. {_again(name)}")
        raise typer.Exit(INTERRUPTED_EXIT) from None
    show(job, as_json)
    if job["state"] != "JOB_STATE_SUCCEEDED":
        reason = job.get("error", {}).get("message", "")
        raise FailedPrecondition(f"The job ended as {job['state'].removeprefix('JOB_STATE_')}. {reason}".strip())


def _again(name: str) -> str:
    return f"Follow it again with: sarto jobs watch {output.short_id(name)}"


def states(api: Client, name: str) -> Iterator[progress.Change]:
    """The job after each change, and the sentences about its work, until it has ended; the server streams both. Waits
    for a server that does not answer. Raises Unavailable when it is away for longer than AWAY_SECONDS."""
    cursor, job, away_since = "0", None, 0.0
    while True:  # a stream ends after some minutes, the job or not
        try:
            for kind, event in api.event_stream(f"/v1/{name}/events", withJob="true", pageToken=cursor):
                away_since = 0.0
                if kind == "job":
                    job = event
                    yield progress.Change(job)
                elif kind == "end":
                    return
                else:
                    cursor = str(event["sequence"])
                    if job is not None and kind == "note":
                        yield progress.Change(job, event["message"])
        except (Unavailable, ApiError) as error:
            if isinstance(error, ApiError) and error.answered_http_status not in (502, 503, 504):
                raise
            if job is None:
                raise
            now = time.monotonic()
            if not away_since:
                away_since = now
                output.messages().print("The server does not answer; jobs continue when it is back. Waiting for it.")
            if now - away_since > AWAY_SECONDS:
                raise Unavailable(
                    f"The server has not answered for {output.duration(AWAY_SECONDS)}. {_again(name)}"
                ) from None
            time.sleep(RETRY_SECONDS)


def waits_for(api: Client, job: dict[str, Any]) -> str:
    """The reason why a job waits, as text."""
    if not job.get("tuningJobState", "").startswith("TUNING_JOB_STATE_WAITING"):
        return ""
    events = api.get(f"/v1/{job['name']}/events")["events"]
    return next((one["message"] for one in reversed(events) if one["kind"] == "waiting"), "")


def show(job: dict[str, Any], as_json: bool) -> None:
    if as_json:
        output.print_json(job)
        return
    spec = spec_of(job)
    tuned = job.get("tunedModel", {})
    metadata = job.get("tuningJobMetadata", {})
    chosen = {**spec.get("hyperParameters", {}), **metadata.get("effectiveParameters", {})}
    facts = {
        "Job": job["name"],
        "State": progress.read(job).phase,
        "Base model": job.get("baseModel", ""),
        "Tuned model name": job.get("tunedModelDisplayName", ""),
        "Training data": dataset_of(spec),
        "Validation data": spec.get("validationDatasetUri", ""),
        "Parameters": ", ".join(
            f"{key} {value}" for key, value in chosen.items() if not isinstance(value, (dict, list))
        ),
        "Steps": f"{metadata.get('completedStepCount', 0)} of {metadata.get('totalStepCount', '?')}"
        if metadata
        else "",
        "Created": output.local_time(job.get("createTime", "")),
        "Ended": output.local_time(job.get("endTime", "")),
        "Error": job.get("error", {}).get("message", ""),
        "Warning": " ".join(metadata.get("warnings", ())),
        "Model": tuned.get("model", ""),
        "Endpoint": tuned.get("endpoint", ""),
    }
    for checkpoint in tuned.get("checkpoints", ()):
        position = f"epoch {checkpoint.get('epoch', '?')}, step {checkpoint.get('step', '?')}"
        where = f"{position}, {checkpoint.get('endpoint', '')}"
        facts[f"Checkpoint {checkpoint['checkpointId']}"] = where
    if tuned.get("endpoint"):
        facts["Talk to it"] = f"sarto chat {output.short_id(tuned['endpoint'])}"
    output.print_facts(facts)
