"""A whole job whose serving was made wrong on purpose: nothing is announced, and the error has the numbers."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest
import sqlalchemy as sa

from sarto.control.executors.executor import clean_environment
from sarto.control.executors.local import LocalExecutor
from sarto.control.runs.supervisor import Supervisor
from sarto.storage.database.tables import checkpoint, endpoint, model, model_version
from tests.control.homes import create, make_control, wait_for_end
from tests.tiny import make_tiny_base

RUN = """
import sys
from dataclasses import replace
from sarto.engine.serving import adapter_pool

right = adapter_pool.adapter_terms


def terms(file, decoder, products):
    return right(replace(file, shape=replace(file.shape, alpha=file.shape.alpha * {factor})), decoder, products)


adapter_pool.adapter_terms = terms
from sarto.engine.programs.tune import main

sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("factor", [1, 50])
def test_a_job_whose_serving_weighs_its_adapter_wrongly_fails_with_the_numbers(tmp_path: Path, factor: int) -> None:
    control = make_control(tmp_path / "home")
    folder = control.catalog.folder(control.catalog.find("gemini-2.0-flash-001").weights)
    shutil.rmtree(folder)
    make_tiny_base(folder)
    program = (sys.executable, "-c", RUN.format(factor=factor))
    supervisor = Supervisor(control, LocalExecutor(clean_environment(os.environ), program))
    name = create(control, spec={"hyperParameters": {"epochCount": 1, "learningRateMultiplier": 20}})
    supervisor.start()
    try:
        job = wait_for_end(control, name, 90)
    finally:
        supervisor.stop()
    with control.database.reading() as connection:
        tables = (checkpoint, endpoint, model, model_version)
        counts = [connection.scalar(sa.select(sa.func.count()).select_from(table)) for table in tables]
    if factor == 1:
        assert job["state"] == "JOB_STATE_SUCCEEDED", job.get("error")
        assert min(count or 0 for count in counts) > 0
        return
    assert job["state"] == "JOB_STATE_FAILED"
    assert job["error"]["code"] == 9
    assert "serving diverges from training" in job["error"]["message"]
    assert "nats a token over" in job["error"]["message"]
    assert "tunedModel" not in job
    assert counts == [0, 0, 0, 0]
