"""A run as the service starts it: a process from a folder with a spec to the same folder with a result."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from sarto.contract.common import BaseWeights, DatasetRef, EvaluationPlan, TuningParameters
from sarto.contract.run_folder import EVALUATION_FOLDER, PAST_RUN, REPORT_FILE
from sarto.contract.tuning_run import PastRun, Progress, RunResult, RunSpec
from tests.specs import arguments, write_spec
from tests.tiny import make_tiny_base

PROGRAM = [sys.executable, "-m", "sarto.engine.programs.tune"]
POLL_SECONDS = 0.02
FULL = {"rank": 0, "alpha": 0.0, "is_full": True, "learning_rate": 1e-3}
WORDS = ["kettle", "lamp", "router", "tent", "fryer", "pump", "mat", "grinder"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> BaseWeights:
    return make_tiny_base(tmp_path_factory.mktemp("base") / "tiny")


def write_dataset(path: Path, count: int) -> DatasetRef:
    def turn(role: str, text: str) -> dict[str, Any]:
        return {"role": role, "parts": [{"text": text}]}

    rows = [
        {"contents": [turn("user", f"Where is my {WORDS[i % 8]}, order {i}?"), turn("model", f"{WORDS[i % 8]} {i}")]}
        for i in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return DatasetRef(uri=f"gs://bucket/{path.name}", path=str(path), size_bytes=path.stat().st_size)


def make_spec(base: BaseWeights, folder: Path, epoch: int = 1, **fields: object) -> RunSpec:
    """One attempt at the job that lives in `folder`."""
    run_folder = folder / str(epoch)
    run_folder.mkdir(parents=True)
    parameters = {"rank": 4, "alpha": 8.0, "epoch_count": 3, "batch_size": 4, "learning_rate": 5e-3}
    given: dict[str, object] = {
        "job": "projects/1/locations/us-central1/tuningJobs/7",
        "epoch": epoch,
        "method": "supervised",
        "run_folder": str(run_folder),
        "base": base,
        "training_dataset": write_dataset(folder / "train.jsonl", 24),
        "validation_dataset": write_dataset(folder / "validation.jsonl", 6),
        "parameters": TuningParameters.model_validate(parameters | dict(fields.pop("parameters", {}))),  # type: ignore[call-overload]
        "max_tokens_per_example": 2048,
        "cache_folder": str(folder / "cache"),
        "resume_folder": str(folder / "resume"),
        "resume_seconds": 0.0,
        "threads": 1,
        "dtype": "float32",
    }
    spec = RunSpec.model_validate(given | fields)
    for path in spec.files().writable:
        Path(path).mkdir(parents=True, exist_ok=True)
    write_spec(spec, run_folder / "spec.json")
    return spec


def arguments_of(spec: RunSpec) -> list[str]:
    return arguments(Path(spec.run_folder) / "spec.json")


def start(spec: RunSpec) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [*PROGRAM, *arguments_of(spec)], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=None
    )


def finish(spec: RunSpec) -> RunResult:
    with start(spec) as child:
        assert child.wait(120) == 0
    return RunResult.model_validate_json((Path(spec.run_folder) / "result.json").read_bytes())


def progress(spec: RunSpec) -> list[Progress]:
    path = Path(spec.run_folder) / "progress.jsonl"
    whole = path.read_bytes().rpartition(b"\n")[0] if path.exists() else b""
    return [Progress.model_validate_json(line) for line in whole.splitlines()]


def steps(spec: RunSpec) -> list[tuple[int, float, float]]:
    return [(line.step.step, line.step.loss, line.step.gradient_norm) for line in progress(spec) if line.step]


def kill_after(spec: RunSpec, step: int) -> None:
    """SIGKILL once the run has told of that step."""
    with start(spec) as child:
        while child.poll() is None and not any(number >= step for number, _, _ in steps(spec)):
            time.sleep(POLL_SECONDS)
        child.send_signal(signal.SIGKILL)
    assert child.returncode == -signal.SIGKILL
    assert not (Path(spec.run_folder) / "result.json").exists()


def test_a_run_leaves_a_whole_result_and_says_what_it_does(tiny: BaseWeights, tmp_path: Path) -> None:
    spec = make_spec(tiny, tmp_path / "job")
    result = finish(spec)
    assert result.error is None
    assert [(c.checkpoint_id, c.epoch, c.step) for c in result.checkpoints] == [("1", 1, 6), ("2", 2, 12), ("3", 3, 18)]
    assert result.best_checkpoint_id is not None
    assert "validation loss" in result.best_reason
    assert result.data is not None
    assert result.data.example_count == 24
    assert result.data.step_count == 18
    assert result.peak_memory_bytes > 1 << 20
    assert result.report_file is not None
    assert json.loads((Path(spec.run_folder) / result.report_file).read_text())["isUsable"] is True
    told = progress(spec)
    phases = [line.phase for line in told if line.kind == "phase"]
    assert phases == ["PROCESSING_DATASET", "TUNING", "POST_PROCESSING"]
    assert [number for number, _, _ in steps(spec)] == list(range(1, 19))
    assert steps(spec)[-1][1] < steps(spec)[0][1]
    last = [line.step for line in told if line.step][-1]
    assert last.tokens_per_second > 0
    assert last.seconds_left == 0
    assert {"data", "parameters", "evaluation", "checkpoint"} <= {line.kind for line in told}
    for record in result.checkpoints:
        assert record.certificate is not None
        assert record.certificate.passed
        assert record.certificate.rows == 3
        folder = Path(spec.run_folder) / record.folder
        assert set(record.files) == {path.name for path in folder.iterdir()}
    assert list((Path(spec.run_folder) / "tensorboard").glob("events.out.tfevents.*"))


def taken(result: RunResult) -> PastRun | None:
    assert result.parameters is not None
    found = result.parameters.details.get(PAST_RUN)
    return PastRun.model_validate(found) if found else None


def forecast(spec: RunSpec) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((Path(spec.run_folder) / REPORT_FILE).read_text())["forecast"]
    return found


@pytest.mark.slow
def test_after_three_jobs_the_forecast_is_near_what_the_next_one_takes(tiny: BaseWeights, tmp_path: Path) -> None:
    """A base this small takes far longer than its operations: the uncorrected forecast is wrong by an order. The bound
    is wide, since other work may come and go beside jobs of a second."""
    past: list[PastRun] = []
    for number in range(4):
        spec = make_spec(tiny, tmp_path / str(number), past_runs=past)
        run = taken(finish(spec))
        assert run is not None and run.base == tiny.digest and run.forecast_seconds < run.tuning_seconds / 3
        if number < 3:
            past.insert(0, run)
    told = forecast(spec)
    assert told["correction"]["runs"] == 3 and told["correction"]["isSameBase"]
    assert told["uncorrectedSeconds"] == run.forecast_seconds
    assert run.tuning_seconds / 3 < told["seconds"] < run.tuning_seconds * 3


@pytest.mark.slow
def test_a_run_that_was_resumed_or_stopped_early_corrects_no_forecast(tiny: BaseWeights, tmp_path: Path) -> None:
    kill_after(make_spec(tiny, tmp_path / "resumed", 1), 3)
    assert taken(finish(make_spec(tiny, tmp_path / "resumed", 2))) is None
    hot = {"epoch_count": 60, "learning_rate": 3e-2}
    stopped = make_spec(tiny, tmp_path / "early", parameters=hot, stop_early=True)
    assert taken(finish(stopped)) is None
    assert steps(stopped)[-1][0] < 60 * 6


@pytest.mark.slow
@pytest.mark.parametrize("file", ["adapter_model.safetensors", "model.safetensors"])
def test_a_run_killed_three_times_ends_like_one_never_killed(tiny: BaseWeights, tmp_path: Path, file: str) -> None:
    fields = {"parameters": FULL} if file == "model.safetensors" else {}
    whole = make_spec(tiny, tmp_path / "whole", **fields)
    expected = finish(whole)
    for epoch, step in ((1, 2), (2, 8), (3, 13)):
        kill_after(make_spec(tiny, tmp_path / "killed", epoch, **fields), step)
    last = make_spec(tiny, tmp_path / "killed", 4, **fields)
    result = finish(last)
    assert steps(last) == steps(whole)
    assert any("resumed after step" in line.message for line in progress(last))
    assert [c.files for c in result.checkpoints] == [c.files for c in expected.checkpoints]
    assert [c.evaluation for c in result.checkpoints] == [c.evaluation for c in expected.checkpoints]
    for mine, theirs in zip(result.checkpoints, expected.checkpoints, strict=True):
        left = Path(last.run_folder) / mine.folder / file
        right = Path(whole.run_folder) / theirs.folder / file
        assert left.read_bytes() == right.read_bytes()


@pytest.mark.slow
def test_a_resume_point_of_other_parameters_or_a_damaged_one_is_named_and_not_used(
    tiny: BaseWeights, tmp_path: Path
) -> None:
    first = make_spec(tiny, tmp_path / "job", 1)
    kill_after(first, 3)
    other = make_spec(tiny, tmp_path / "job", 2, parameters={"learning_rate": 1e-3})
    assert finish(other).error is None
    assert any("of other data or parameters" in line.message for line in progress(other))
    point = tmp_path / "job" / "resume" / "resume.safetensors"
    point.write_bytes(point.read_bytes()[:-100])
    again = make_spec(tiny, tmp_path / "job", 3)
    assert finish(again).error is None
    assert any("cannot be read" in line.message for line in progress(again))
    assert [number for number, _, _ in steps(again)] == list(range(1, 19))


@pytest.mark.parametrize("how", ["sigterm", "parent gone"])
def test_a_run_that_is_told_to_stop_stops_at_once_and_leaves_no_result(
    tiny: BaseWeights, tmp_path: Path, how: str
) -> None:
    spec = make_spec(tiny, tmp_path / "job", parameters={"epoch_count": 1000})
    with start(spec) as child:
        while not steps(spec):
            assert child.poll() is None
            time.sleep(POLL_SECONDS)
        if how == "sigterm":
            child.send_signal(signal.SIGTERM)
        else:
            assert child.stdin is not None
            child.stdin.close()
        assert child.wait(5) == 143
    assert not (Path(spec.run_folder) / "result.json").exists()


def test_an_unknown_method_is_the_results_error_and_named(tiny: BaseWeights, tmp_path: Path) -> None:
    result = finish(make_spec(tiny, tmp_path, method="unheard-of"))
    assert result.error is not None
    assert result.error["code"] == 12
    assert 'no tuning method "unheard-of"' in result.error["message"]


def test_a_fault_of_the_user_is_the_results_error(tiny: BaseWeights, tmp_path: Path) -> None:
    spec = make_spec(tiny, tmp_path / "job")
    Path(spec.training_dataset.path).write_text('{"contents": [{"role": "user", "parts": [{"text": "Hello"}]}]}\n')
    result = finish(spec)
    assert result.error is not None
    assert result.error["code"] == 3
    assert "line 1" in result.error["message"]
    assert not result.checkpoints


def test_a_run_that_refuses_its_data_leaves_the_report_on_it(tiny: BaseWeights, tmp_path: Path) -> None:
    spec = make_spec(tiny, tmp_path / "job")
    with Path(spec.training_dataset.path).open("a") as file:
        file.write("nonsense\n" * 6)
    pinned = spec.training_dataset.model_copy(update={"size_bytes": Path(spec.training_dataset.path).stat().st_size})
    spec = spec.model_copy(update={"training_dataset": pinned})
    write_spec(spec, Path(spec.run_folder) / "spec.json")
    result = finish(spec)
    assert result.error is not None and "6 of 30 rows cannot be used" in result.error["message"]
    report = json.loads((Path(spec.run_folder) / REPORT_FILE).read_text())
    assert not report["isUsable"] and report["dataset"]["faults"]["shown"][0]["line"] == 25


def test_a_loss_that_is_not_finite_fails_the_run_by_step_and_line(tiny: BaseWeights, tmp_path: Path) -> None:
    result = finish(make_spec(tiny, tmp_path / "job", parameters={"learning_rate": 1e30}))
    assert result.error is not None
    assert "step" in result.error["message"]
    assert "not a finite number" in result.error["message"]


def test_a_device_that_is_not_there_is_refused_by_name(tiny: BaseWeights, tmp_path: Path) -> None:
    result = finish(make_spec(tiny, tmp_path / "job", device="tpu"))
    assert result.error is not None
    assert '"tpu" is not available' in result.error["message"]


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the bound is Linux's")
def test_a_run_that_is_bound_in_memory_fits_its_steps_to_it_or_says_what_would_fit(
    tiny: BaseWeights, tmp_path: Path
) -> None:
    for mebibytes in (420, 480, 560, 900):
        spec = make_spec(tiny, tmp_path / str(mebibytes))
        command = [
            sys.executable,
            "-m",
            "sarto.engine.programs.sandbox",
            f"--data-bytes={mebibytes << 20}",
            PROGRAM[-1],
        ]
        with subprocess.Popen([*command, *arguments_of(spec)], stdin=subprocess.PIPE) as child:
            assert child.wait(120) == 0
        result = RunResult.model_validate_json((Path(spec.run_folder) / "result.json").read_bytes())
        if mebibytes < 900 and result.error is not None:
            assert result.error["code"] == 8
            assert result.remedies or "would fit" in result.error["message"]
        else:
            assert result.parameters is not None
            assert 0 < result.parameters.details["memory_free_bytes"] < mebibytes << 20
    assert "attention weights kept" in result.parameters.details["memory_plan"]


def test_a_machine_fault_leaves_no_result_and_another_exit_code(tiny: BaseWeights, tmp_path: Path) -> None:
    spec = make_spec(tiny, tmp_path / "job")
    Path(spec.training_dataset.path).unlink()
    with start(spec) as child:
        assert child.wait(60) not in (0, 143)
    assert not (Path(spec.run_folder) / "result.json").exists()


def test_a_run_continues_the_adapter_of_another(tiny: BaseWeights, tmp_path: Path) -> None:
    first = make_spec(tiny, tmp_path / "first")
    result = finish(first)
    parent = Path(first.run_folder) / result.checkpoints[-1].folder
    second = make_spec(tiny, tmp_path / "second", parent_adapter=str(parent))
    assert finish(second).error is None
    assert steps(second)[0][1] < steps(first)[0][1] * 0.9
    assert load_file(parent / "adapter_model.safetensors")


def test_the_run_imports_neither_transformers_nor_the_other_half(tmp_path: Path) -> None:
    program = (
        "import sys, sarto.engine.programs.tune; "
        "print([n for n in ('transformers', 'peft', 'sqlalchemy', 'starlette', 'sarto.control', 'sarto.api') "
        "if n in sys.modules])"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.strip() == "[]"


CONFIG = {
    "metrics": [{"exactMatchSpec": {}, "aggregationMetrics": ["AVERAGE"]}, {"rougeSpec": {"rougeType": "rougeL"}}],
    "outputConfig": {"gcsDestination": {"outputUriPrefix": "gs://b/eval"}},
}
EVALUATED = EvaluationPlan(config=CONFIG, output_uri="gs://b/eval/7")


def assessments(spec: RunSpec) -> list[tuple[str, Any]]:
    return [(line.assessment.checkpoint_id, line.assessment.run) for line in progress(spec) if line.assessment]


def test_every_checkpoint_is_evaluated_and_the_report_compares_them_with_the_base(
    tiny: BaseWeights, tmp_path: Path
) -> None:
    spec = make_spec(tiny, tmp_path / "job", evaluation=EVALUATED)
    result = finish(spec)
    assert result.error is None
    assert result.has_report
    runs = dict(assessments(spec))
    assert list(runs) == ["1", "2", "3"]
    for number, run in runs.items():
        assert run["checkpointId"] == number
        assert "error" not in run
        response = run["evaluateDatasetResponse"]
        assert response["outputInfo"]["gcsOutputDirectory"] == f"gs://b/eval/7/checkpoint-{number}"
        assert [each["aggregationMetric"] for each in response["aggregationOutput"]["aggregationResults"]] == [
            "AVERAGE", "AVERAGE", "STANDARD_DEVIATION",
        ]  # fmt: skip
    folder = tmp_path / "job" / "resume" / EVALUATION_FOLDER
    report = json.loads((folder / "report" / "report.json").read_bytes())
    base, *checkpoints = report["systems"]
    assert base["name"] == "base"
    assert [each["name"] for each in checkpoints] == ["checkpoint 1", "checkpoint 2", "checkpoint 3"]
    assert base["validationLoss"] > checkpoints[-1]["validationLoss"]
    assert report["rows"] == 6
    assert report["best"]["name"] == f"checkpoint {result.best_checkpoint_id}"
    assert (folder / "report" / "report.html").read_text().startswith("<!doctype html>")
    assert len((folder / "checkpoint-2" / "row_results.jsonl").read_bytes().splitlines()) == 6


def test_a_killed_run_evaluates_no_finished_checkpoint_again_and_finds_the_same(
    tiny: BaseWeights, tmp_path: Path
) -> None:
    whole = make_spec(tiny, tmp_path / "whole", evaluation=EVALUATED)
    finish(whole)
    first = make_spec(tiny, tmp_path / "job", evaluation=EVALUATED)
    kill_after(first, 8)
    answers = tmp_path / "job" / "resume" / EVALUATION_FOLDER / "answers"
    before = {path.name: path.stat().st_mtime_ns for path in answers.iterdir()}
    assert len(before) == 2
    second = make_spec(tiny, tmp_path / "job", epoch=2, evaluation=EVALUATED)
    finish(second)
    after = {path.name: path.stat().st_mtime_ns for path in answers.iterdir()}
    assert {name: after[name] for name in before} == before
    assert assessments(second) == assessments(whole)


def test_an_evaluation_that_cannot_be_made_leaves_its_error_and_the_run_its_checkpoints(
    tiny: BaseWeights, tmp_path: Path
) -> None:
    wrong = {"metrics": [{"pointwiseMetricSpec": {"metricPromptTemplate": "Rate {response} for {mood}"}}]}
    spec = make_spec(tiny, tmp_path / "job", evaluation=EvaluationPlan(config=wrong))
    result = finish(spec)
    assert result.error is None
    assert len(result.checkpoints) == 3
    for _, run in assessments(spec):
        assert "mood" in run["error"]["message"]


def test_whatever_breaks_in_an_evaluation_is_its_error_and_the_run_goes_on(tiny: BaseWeights, tmp_path: Path) -> None:
    spec = make_spec(tiny, tmp_path / "job", evaluation=EVALUATED, parameters={"epoch_count": 2})
    answers = tmp_path / "job" / "resume" / EVALUATION_FOLDER / "answers"
    answers.mkdir(parents=True)
    (answers / "base.jsonl").write_text('{"of": "another format"}\n')
    result = finish(spec)
    assert result.error is None and len(result.checkpoints) == 2 and not result.has_report
    assert [run["error"] for _, run in assessments(spec)] == [
        {"code": 13, "message": "TypeError; the log has more."}
    ] * 2
    assert result.best_checkpoint_id is not None


def test_an_evaluation_that_takes_too_long_is_cut_off_and_keeps_what_was_answered(
    tiny: BaseWeights, tmp_path: Path
) -> None:
    plan = EVALUATED.model_copy(update={"max_seconds": 0.01})
    spec = make_spec(tiny, tmp_path / "job", evaluation=plan, parameters={"epoch_count": 2})
    result = finish(spec)
    assert result.error is None and len(result.checkpoints) == 2
    for _, run in assessments(spec):
        assert run["error"]["code"] == 4 and "max_evaluation_seconds" in run["error"]["message"]


def test_scores_of_the_report_are_told_by_step(tiny: BaseWeights, tmp_path: Path) -> None:
    spec = make_spec(tiny, tmp_path / "job", evaluation=EvaluationPlan(), parameters={"epoch_count": 2})
    finish(spec)
    told = [line.assessment for line in progress(spec) if line.assessment]
    assert [each.step for each in told] == [6, 12]
    assert all(set(each.scores) == {"chrf", "exact_match"} for each in told)


def test_a_judge_is_the_base_where_none_is_named_and_says_how_its_samples_agree(
    tiny: BaseWeights, tmp_path: Path
) -> None:
    template = "Question: {prompt}\nA: {response}\nB: {baseline_model_response}"
    config = {
        "metrics": [
            {"pairwiseMetricSpec": {"metricPromptTemplate": template}},
            {
                "pointwiseMetricSpec": {"metricPromptTemplate": "Rate from 1 to 5: {response}"},
                "metadata": {"scoreRange": {"min": 1, "max": 5, "step": 1}},
            },
        ],
        "autoraterConfig": {"samplingCount": 2, "generationConfig": {"maxOutputTokens": 48}},
    }
    spec = make_spec(tiny, tmp_path / "job", evaluation=EvaluationPlan(config=config), parameters={"epoch_count": 1})
    assert finish(spec).has_report
    [(_, run)] = assessments(spec)
    assert "error" not in run
    mode, average, deviation = run["evaluateDatasetResponse"]["aggregationOutput"]["aggregationResults"]
    assert mode["pairwiseMetricResult"]["pairwiseChoice"] in ("BASELINE", "CANDIDATE", "TIE")
    assert 1 <= average["pointwiseMetricResult"]["score"] <= 5
    assert deviation["aggregationMetric"] == "STANDARD_DEVIATION"
    folder = tmp_path / "job" / "resume" / EVALUATION_FOLDER / "checkpoint-1"
    metrics = json.loads((folder / "aggregation_results.json").read_bytes())["metrics"]
    assert all("krippendorffAlpha" in metric and "weak" in metric["note"] for metric in metrics)
    report = json.loads((folder.parent / "report" / "report.json").read_bytes())
    assert any("repeated samples agree in" in note for note in report["notes"])
    assert any("A small judge is weak" in note for note in report["notes"])


def test_full_tuning_is_evaluated_and_certified_like_an_adapter(tiny: BaseWeights, tmp_path: Path) -> None:
    spec = make_spec(tiny, tmp_path / "job", parameters=FULL, evaluation=EvaluationPlan())
    result = finish(spec)
    assert result.error is None and result.has_report
    assert all(record.certificate is not None and record.certificate.passed for record in result.checkpoints)
    report = json.loads((tmp_path / "job/resume" / EVALUATION_FOLDER / "report/report.json").read_text())
    losses = [system["validationLoss"] for system in report["systems"]]
    assert losses[0] > losses[-1]
    assert not any("failed" in line.message for line in progress(spec))
    assert result.parameters is not None and "trained_parameters" in result.parameters.details
