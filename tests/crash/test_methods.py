"""Jobs of other methods, whose real runs are killed in each phase: control takes them up, and no number differs."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sarto.control.context import Control
from sarto.control.executors.executor import clean_environment
from sarto.control.executors.local import LocalExecutor
from sarto.control.jobs import events, tuning_jobs
from sarto.control.models import registry
from sarto.control.runs import progress
from sarto.control.runs.supervisor import Supervisor
from sarto.names import parse_resource
from sarto.schema.tuning_jobs import TuningJob
from sarto.system.failpoints import VARIABLE
from tests.control.homes import LIMITS, PARENT, make_control, member, wait_for_end
from tests.tiny import make_tiny_base

EAGER = replace(LIMITS, lease_seconds=20.0, resume_seconds=0.0, max_attempts=5)
"""A resume point after every step, and after every block of references."""
PAIRS, EXAMPLES = 70, 20
"""References are computed in blocks of 32 pairs: two of them are followed by another."""
IN_REFERENCES = "rename engine.tuning.methods.references._References._compute after"
IN_STEPS = "rename engine.tuning.checkpoint_files.save_resume_point after*11"
"""Of 18 steps and more, so that the second attempt does not come there."""
OPEN = "huggingfacetb/smollm2@smollm2-135m-instruct"
SECONDS = 120.0

Values = dict[str, list[tuple[int, float]]]
Outcome = tuple[Values, list[bytes]]


def turn(role: str, text: str) -> dict[str, Any]:
    return {"role": role, "parts": [{"text": text}]}


def pair(number: int) -> dict[str, Any]:
    replies = ((1.0, f"No {number}."), (0.0, f"Let me see about {number}."))
    completions = [{"score": score, "completion": turn("model", text)} for score, text in replies]
    return {"contents": [turn("user", f"Is order {number} late?")], "completions": completions}


def example(number: int) -> dict[str, Any]:
    return {"contents": [turn("user", f"question {number}"), turn("model", f"answer {number}")]}


def preference_job() -> dict[str, Any]:
    spec = {"trainingDatasetUri": "gs://data/pairs.jsonl", "hyperParameters": {"epochCount": 2}}
    return {"baseModel": "gemini-2.0-flash-001", "preferenceOptimizationSpec": spec}


def full_job() -> dict[str, Any]:
    parameters = {"epochCount": 2, "batchSize": 2, "learningRate": 1e-3}
    spec: dict[str, Any] = {"trainingDatasetUri": "gs://data/examples.jsonl", "hyperParameters": parameters}
    spec["tuningMode"] = "TUNING_MODE_FULL"
    return {"baseModel": OPEN, "outputUri": "gs://data/out", "supervisedTuningSpec": spec}


JOBS: dict[str, Callable[[], dict[str, Any]]] = {"preference": preference_job, "full": full_job}
DEATHS = {
    "preference, in its references": ("preference", IN_REFERENCES, 2),
    "preference, in its steps": ("preference", IN_STEPS, 1),
    "full, in its steps": ("full", IN_STEPS, 1),
}
"""Method, the place where each attempt dies that comes there, and the number of attempts that do."""


@contextmanager
def service(home: Path, url: str = "", death: str = "") -> Iterator[Control]:
    """Control and a supervisor of real runs over the tiny base."""
    control = make_control(home, url, EAGER)
    make_tiny_base(control.catalog.models_folder / "smollm2-135m-instruct")
    for name, make, count in (("pairs", pair, PAIRS), ("examples", example, EXAMPLES)):
        rows = "".join(json.dumps(make(number)) + "\n" for number in range(count))
        control.buckets.put_bytes("data", f"{name}.jsonl", rows.encode())
    planted = {VARIABLE: death} if death else {}
    supervisor = Supervisor(control, LocalExecutor(clean_environment(os.environ) | {"OMP_NUM_THREADS": "1"} | planted))
    supervisor.start()
    yield control
    supervisor.stop()
    control.sealer.private.close()
    control.database.close()


def outcome(control: Control, method: str) -> tuple[Outcome, list[str]]:
    """The series of a job and the weights of its checkpoints, and the story of its attempts."""
    job = TuningJob.read(JOBS[method](), "tuning_job")
    name = parse_resource(tuning_jobs.create(control, member(control), PARENT, job)["name"], "tuningJobs")
    ended = wait_for_end(control, name, SECONDS)
    assert ended["state"] == "JOB_STATE_SUCCEEDED", ended.get("error")
    points = progress.points(control.database, member(control).project, name.id)
    series = {each: [point[:2] for point in found] for each, found in points.items() if "loss" in each}
    model = parse_resource(ended["tunedModel"]["model"], "models", versioned=True)
    folder = registry.get(control, member(control), model)["artifactUri"].removeprefix("gs://")
    bucket, _, prefix = folder.partition("/")
    stored = control.buckets.list(bucket, prefix, project=member(control).project).objects
    weights = [control.buckets.path(one).read_bytes() for one in stored if one.name.endswith("model.safetensors")]
    told = events.list_events(control, member(control), name)[0]
    return (series, weights), [f"{event['kind']}: {event['message']}" for event in told]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    with service(tmp_path_factory.mktemp("undisturbed") / "home") as control:
        return {method: outcome(control, method)[0] for method in JOBS}


@pytest.mark.slow
@pytest.mark.parametrize("death", DEATHS)
@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_a_killed_run_is_taken_up_with_the_numbers_of_one_left_alone(
    request: pytest.FixtureRequest, tmp_path: Path, undisturbed: dict[str, Outcome], database: str, death: str
) -> None:
    url = request.getfixturevalue("postgres_url") if database == "postgresql" else ""
    method, place, times = DEATHS[death]
    with service(tmp_path / "home", url, place) as control:
        (series, weights), story = outcome(control, method)
    assert sum(words.startswith("started") for words in story) == times + 1, story
    if place == IN_STEPS:
        assert any("resumed after step 11" in words for words in story), story
    assert series and series == undisturbed[method][0]
    assert weights and weights == undisturbed[method][1]
