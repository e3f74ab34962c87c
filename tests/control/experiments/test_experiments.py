"""An experiment read the way the metadata client reads it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from sarto.control.context import Control
from sarto.control.experiments import experiments
from sarto.control.runs.supervisor import Supervisor
from sarto.errors import NotFound
from sarto.names import LocationName
from tests.control.homes import PARENT, create, member, wait_for_end


def test_the_names_of_an_experiment_lead_from_the_job_to_its_metrics(
    any_control: Control, supervise: Callable[[Control], Supervisor]
) -> None:
    supervise(any_control)
    job = wait_for_end(any_control, create(any_control))
    wait_for_end(any_control, create(any_control))
    caller = member(any_control)
    context = experiments.get_context(any_control, caller, PARENT, job["experiment"].rpartition("/")[2])
    assert context["name"] == job["experiment"] and context["schemaTitle"] == "system.Experiment"
    wanted = (
        f'(schema_title="system.ExperimentRun" OR schema_title="system.PipelineRun") '
        f'AND parent_contexts:"{context["name"]}"'
    )
    runs, token = experiments.list_contexts(any_control, caller, PARENT, filter=wanted)
    assert len(runs) == 1 and token == ""
    assert runs[0]["metadata"]["_state"] == "COMPLETE" and runs[0]["metadata"]["_params"]["epochCount"] == 3
    run = runs[0]["name"].rpartition("/")[2]
    assert experiments.get_context(any_control, caller, PARENT, run) == runs[0]
    artifact = experiments.get_artifact(any_control, caller, PARENT, f"{run}-tb-run")
    tensorboard_run = experiments.get_tensorboard_run(any_control, caller, PARENT, run)
    assert artifact["metadata"]["resourceName"] == tensorboard_run["name"]
    series, _ = experiments.list_time_series(any_control, caller, PARENT, run)
    assert {one["displayName"] for one in series} == {
        f"/{part}_{name}"
        for part in ("train", "eval")
        for name in ("total_loss", "fraction_of_correct_next_step_preds", "num_predictions")
    }
    data = experiments.batch_read(any_control, caller, PARENT, [one["name"] for one in series])["timeSeriesData"]
    by_name = {one["displayName"]: read for one, read in zip(series, data, strict=True)}
    assert [point["scalar"]["value"] for point in by_name["/train_total_loss"]["values"]] == [
        2.0 / s for s in range(1, 7)
    ]
    assert [point["step"] for point in by_name["/eval_total_loss"]["values"]] == ["2", "4", "6"]


def test_executions_are_none_and_unknown_names_are_not_found(control: Control) -> None:
    caller = member(control)
    assert (
        experiments.list_executions(control, caller, PARENT, 'schema_title="system.Run" AND in_context("x")')[0] == []
    )
    for name in ("tuning-experiment-1", "x", "tuning-experiment-1-2"):
        with pytest.raises(NotFound):
            experiments.get_context(control, caller, PARENT, name)
    with pytest.raises(NotFound):
        experiments.get_tensorboard(control, caller, PARENT, "7")
    board = experiments.get_tensorboard(control, caller, PARENT, caller.project)
    assert board["name"] == f"{LocationName(caller.project, PARENT.location)}/tensorboards/{caller.project}"
