"""What the control tests share: homes with a project and data, jobs, and supervisors over the stand-in run program."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson

from sarto.catalog import DIGEST_FILE, Catalog
from sarto.configuration import Limits
from sarto.control.access import authorization, projects
from sarto.control.access.principal import Principal
from sarto.control.context import Control, Pauses
from sarto.control.evaluation.dataset_evaluations import EvaluationRun
from sarto.control.executors.executor import clean_environment
from sarto.control.executors.local import LocalExecutor
from sarto.control.exports.export_model import ExportRun
from sarto.control.jobs import tuning_jobs
from sarto.control.models.checkpoint_origin import CheckpointOrigin
from sarto.names import LocationName, ResourceName, parse_resource
from sarto.schema.evaluation import EvaluationConfig
from sarto.schema.tuning_jobs import JobState, TuningJob
from sarto.storage.buckets.store import Buckets
from sarto.storage.database.database import Database
from sarto.storage.database.migrations import upgrade
from sarto.storage.encryption.key_service import KeyService
from sarto.storage.encryption.keyset_store import KeyMaterial
from sarto.storage.encryption.master_key import read_master
from sarto.storage.encryption.scratch_folder import PrivateFolder
from sarto.storage.encryption.sealer import Sealer

PARENT = LocationName("demo", "us-central1")
STAND_IN = Path(__file__).with_name("stand_in.py")
ROWS = b"".join(
    orjson.dumps(
        {
            "contents": [
                {"role": "user", "parts": [{"text": f"question {i}"}]},
                {"role": "model", "parts": [{"text": f"answer {i}"}]},
            ]
        }
    )
    + b"\n"
    for i in range(20)
)
ROOT = Principal("root@example.com", "", "user")
LIMITS = Limits(threads=1, concurrent_runs=1, lease_seconds=2.0, reserve_bytes=0)
PAUSES = Pauses(retry_seconds=0.1)


def open_control(home: Path, url: str = "", limits: Limits = LIMITS) -> Control:
    """A control over a home that may exist already."""
    home.mkdir(exist_ok=True)
    database = Database.in_home(home, url)
    upgrade(database)
    keys = KeyService(database, KeyMaterial(home / "keys", read_master(home)))
    buckets = Buckets(database, home, Sealer(keys, PrivateFolder(home / "private")))
    return Control(database, buckets, Catalog.load(models_folder=home / "models"), home, limits, PAUSES)


def export_run(folder: str, *, may_replace: bool = True) -> ExportRun:
    """An export of a model to gs://data/FOLDER."""
    origin = CheckpointOrigin(weights="weights", base_model="base", rank=4)
    return ExportRun(
        model="model", title="model", format="adapter", weights="weights", base_model="base", adapter_folder="adapter",
        rank=4, checkpoint="1", step=1, origin=origin, job="1", job_resource=TuningJob(), bucket="data", folder=folder,
        may_replace=may_replace,
    )  # fmt: skip


def evaluation_run(uri: str, output: str) -> EvaluationRun:
    """An evaluation of given answers."""
    return EvaluationRun(dataset=uri, models=[], config=EvaluationConfig(), targets={}, outside=[], output=output)


def make_control(home: Path, url: str = "", limits: Limits = LIMITS) -> Control:
    """A fresh control: project `demo`, bucket `data`, and folders in place of base weights."""
    control = open_control(home, url, limits)
    for weights in control.catalog.weights.values():
        folder = control.catalog.folder(weights)
        folder.mkdir(parents=True)
        (folder / DIGEST_FILE).write_text(f"digest of {weights.id}")
    with control.database.transaction() as connection:
        project = projects.insert(connection, "demo", control.database.now(connection))
        authorization.bind(connection, authorization.SERVICE, authorization.SARTO_ADMIN, ROOT.member)
    control.buckets.create_bucket(project.number, "data")
    for name in ("train", "slow", "die-once", "die", "fault", "deaf", "raise", "hangs"):
        control.buckets.put_bytes("data", f"{name}.jsonl", ROWS)
    return control


def member(control: Control, project_id: str = "demo") -> Principal:
    """An administrator of one project."""
    found = projects.find(control.database, project_id)
    assert found is not None
    caller = Principal(f"ada@{project_id}.example", found.number, "user")
    with control.database.transaction() as connection:
        authorization.bind(connection, f"projects/{found.number}", "roles/owner", caller.member)
    return caller


def add_project(control: Control, project_id: str) -> Principal:
    with control.database.transaction() as connection:
        made = projects.insert(connection, project_id, control.database.now(connection))
    control.buckets.create_bucket(made.number, f"data-{project_id}")
    control.buckets.put_bytes(f"data-{project_id}", "train.jsonl", ROWS)
    return member(control, project_id)


def job_body(data: str = "train", **fields: Any) -> dict[str, Any]:
    """A request body; `data` picks how the stand-in behaves."""
    uri = data if "://" in data else f"gs://data/{data}.jsonl"
    source = {} if "preTunedModel" in fields else {"baseModel": "gemini-2.0-flash-001"}
    spec = {"trainingDatasetUri": uri, **fields.pop("spec", {})}
    return {**source, "supervisedTuningSpec": spec, **fields}


def create(control: Control, data: str = "train", project: str = "demo", **fields: Any) -> ResourceName:
    parent = LocationName(project, fields.pop("location", PARENT.location))
    job = TuningJob.read(job_body(data, **fields), "tuning_job")
    return parse_resource(tuning_jobs.create(control, member(control, project), parent, job)["name"], "tuningJobs")


def read(control: Control, name: ResourceName) -> dict[str, Any]:
    return tuning_jobs.get(control, ROOT, name)


def state(control: Control, name: ResourceName) -> str:
    return str(read(control, name)["state"]).removeprefix("JOB_STATE_")


def wait_until(holds: Callable[[], bool], seconds: float = 20.0) -> None:
    until = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < until, "it did not happen in time"
        time.sleep(0.01)


def wait_for_end(control: Control, name: ResourceName, seconds: float = 20.0) -> dict[str, Any]:
    wait_until(lambda: JobState(read(control, name)["state"]).is_final, seconds)
    return read(control, name)


def stand_in_executor() -> LocalExecutor:
    return LocalExecutor(clean_environment(os.environ), (sys.executable, str(STAND_IN)))
