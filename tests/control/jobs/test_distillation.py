"""Distillation at create: the teacher's rights, and the level that its vocabulary allows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sarto.contract.vocabulary import difference
from sarto.control.context import Control
from sarto.control.jobs import tuning_jobs
from sarto.control.jobs.job_row import job_of, plan_of
from sarto.control.runs.evaluation_plan import teaching
from sarto.errors import InvalidArgument, SartoError
from sarto.names import LocationName, parse_resource
from sarto.schema.tuning_jobs import TuningJob
from tests.control.homes import PARENT, add_project, create, member, wait_for_end
from tests.control.jobs.test_data_versions import Supervise

STUDENT, OTHER = "gemini-2.0-flash-001", "qwen/qwen3@qwen3-0.6b"
WORDS = ["a", "b", "c", "d"]


def with_tokens(control: Control, name: str, words: list[str], template: str = "{{ messages }}") -> Path:
    folder = control.catalog.folder(control.catalog.find(name).weights)
    vocabulary = {word: number for number, word in enumerate(words)}
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocabulary}, "added_tokens": []}))
    (folder / "chat_template.jinja").write_text(template)
    return folder


def distil(control: Control, project: str = "demo", teacher: str = OTHER, **fields: Any) -> TuningJob:
    kind = "tunedTeacherModelSource" if teacher.startswith("projects/") else "baseTeacherModel"
    spec = {"promptDatasetUri": f"gs://data{'' if project == 'demo' else '-' + project}/train.jsonl", kind: teacher}
    body = {"baseModel": STUDENT, "distillationSpec": spec | fields.pop("spec", {})} | fields
    parent = LocationName(project, PARENT.location)
    name = tuning_jobs.create(control, member(control, project), parent, TuningJob.read(body, "tuning_job"))["name"]
    with control.database.reading() as connection:
        row = tuning_jobs.find(
            connection, parse_resource(name, "tuningJobs").project, parse_resource(name, "tuningJobs")
        )
    job, plan = job_of(row), plan_of(row)
    return job.model_copy(update={"description": describe(control, job, plan)})


def describe(control: Control, job: TuningJob, plan: Any) -> str:
    """Level and reason of the run."""
    folder = Path(control.base(plan.weights).folder)
    found = teaching(control, job, plan, folder, control.places)
    assert found is not None
    return f"{found.level} {found.level_reason}"


def test_a_teacher_of_another_vocabulary_teaches_its_answers_and_its_distribution_is_refused(control: Control) -> None:
    with_tokens(control, STUDENT, WORDS)
    with_tokens(control, OTHER, ["a", "b", "x", "d"])
    words = distil(control).description
    assert words.startswith("sequence sequence: their vocabularies differ: token 2 is")
    for fields, path in (
        ({"labels": {"sarto-distillation": "token"}}, r"labels\[sarto-distillation\]"),
        ({"spec": {"hyperParameters": {"sftLossWeightMultiplier": 1}}}, "sft_loss_weight_multiplier"),
    ):
        with pytest.raises(InvalidArgument, match=f"{path}.*token 2 is"):
            distil(control, **fields)


def test_a_wider_vocabulary_is_the_same_in_the_common_range_and_another_template_is_not(control: Control) -> None:
    student = with_tokens(control, STUDENT, WORDS)
    teacher = with_tokens(control, OTHER, [*WORDS, "e"])
    assert difference(teacher, student) == difference(student, teacher) == ""
    assert distil(control).description.startswith("token token: the teacher is on this server")
    assert distil(control, labels={"sarto-distillation": "sequence"}).description == "sequence sequence, as requested"
    with_tokens(control, OTHER, WORDS, "{{ bos_token }}")
    assert "chat templates differ" in difference(teacher, student)


def test_a_tuned_teacher_is_for_those_who_may_use_it(control: Control, supervise: Supervise) -> None:
    with_tokens(control, STUDENT, WORDS)
    supervise(control)
    model = wait_for_end(control, create(control))["tunedModel"]["model"]
    assert distil(control, teacher=model).description.startswith("token")
    add_project(control, "else")
    with pytest.raises(SartoError, match=r"tuned_teacher_model_source.*teacher cannot be used"):
        distil(control, "else", model)
