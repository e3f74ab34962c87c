"""A distillation as a run: the teacher answers prompts once, whatever kills the run, and the student learns from the
labelled rows as from any others."""

from __future__ import annotations

import json
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from sarto.contract.common import BaseWeights, DatasetRef, EvaluationPlan, JudgeModel, Teaching
from sarto.contract.model_relay import RelayRequest, RelayResponse
from sarto.contract.run_folder import ANSWERED_FILE, ANSWERS_FOLDER, ASKED_FILE, LABELLED_FOLDER, REPORT_FILE
from sarto.contract.tuning_run import RunResult, RunSpec
from sarto.conversations.examples import parse_line
from tests.engine.programs.test_tune import POLL_SECONDS, finish, make_spec, progress, start, steps
from tests.tiny import make_tiny_base

WORDS = ["red", "blue", "green", "grey"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> BaseWeights:
    return make_tiny_base(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture(scope="module")
def teacher(tiny: BaseWeights, tmp_path_factory: pytest.TempPathFactory) -> JudgeModel:
    """The tiny base, tuned until it answers every question with its word."""
    folder = tmp_path_factory.mktemp("teacher")
    parameters = {"rank": 8, "alpha": 16.0, "epoch_count": 60, "batch_size": 4, "learning_rate": 2e-2}
    rows = write(folder / "rows.jsonl", [question(number, WORDS[number]) for number in range(4)])
    spec = make_spec(
        tiny, folder / "job", parameters=parameters, training_dataset=rows, validation_dataset=None,
        export_last_checkpoint_only=True,
    )  # fmt: skip
    result = finish(spec)
    assert result.error is None
    return JudgeModel(
        base=tiny, adapter_folder=str(Path(spec.run_folder) / result.checkpoints[-1].folder), adapter_digest="teacher"
    )


def question(number: int, reply: str = "") -> dict[str, Any]:
    contents = [{"role": "user", "parts": [{"text": f"Colour {number % 4}?"}]}]
    return {"contents": [*contents, *([{"role": "model", "parts": [{"text": reply}]}] if reply else [])]}


def write(path: Path, rows: list[dict[str, Any]]) -> DatasetRef:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return DatasetRef(uri=f"gs://bucket/{path.name}", path=str(path), size_bytes=path.stat().st_size)


def taught(
    base: BaseWeights, folder: Path, model: JudgeModel | None, epoch: int = 1, count: int = 12, **fields: Any
) -> RunSpec:
    teaching = {"teacher": "outside/one" if model is None else "t", "model": model, "level_reason": "so"}
    given: dict[str, Any] = {
        "method": "distillation",
        "data_format": "prompts",
        "training_dataset": write(folder / "prompts.jsonl", [question(number) for number in range(count)]),
        "validation_dataset": write(folder / "held-out.jsonl", [question(0, "red"), question(1), question(2)]),
        "teaching": Teaching.model_validate(teaching | fields.pop("teaching", {})),
    }
    return make_spec(base, folder, epoch, **(given | fields))


def labelled(folder: Path, role: str = "training") -> list[tuple[str, str]]:
    rows = (folder / "resume" / LABELLED_FOLDER / f"{role}.jsonl").read_bytes().splitlines()
    examples = [parse_line(raw, number) for number, raw in enumerate(rows, 1)]
    return [(example.turns[-2].text, example.turns[-1].text) for example in examples]


def test_a_student_learns_the_answers_and_an_sft_job_on_them_has_the_same_losses(
    tiny: BaseWeights, teacher: JudgeModel, tmp_path: Path
) -> None:
    spec = taught(tiny, tmp_path / "job", teacher, evaluation=EvaluationPlan())
    result = finish(spec)
    assert result.error is None
    assert labelled(tmp_path / "job") == [(f"Colour {n % 4}?", WORDS[n % 4]) for n in range(12)]
    held_out = [("Colour 0?", "red"), ("Colour 1?", "blue"), ("Colour 2?", "green")]
    assert labelled(tmp_path / "job", "validation") == held_out
    assert result.data is not None and result.data.is_prompts
    assert (result.data.example_count, result.data.output_tokens.sum, result.data.step_count) == (12, 0, 9)
    assert result.data.sample_contents[0]["parts"][0]["text"] == "Colour 0?" and len(result.data.sample_contents) == 3
    assert result.parameters is not None
    assert (result.parameters.teacher, result.parameters.distillation_level) == ("t", "sequence")
    notes = [line.message for line in progress(spec) if line.kind == "note"]
    assert "t answers 12 times." in notes and "Labelled 12 of 12." in notes and "Labelled 5 of 12." in notes
    assert json.loads((Path(spec.run_folder) / REPORT_FILE).read_text())["dataset"]["usedRows"] == 12
    plain = make_spec(
        tiny, tmp_path / "sft", validation_dataset=None,
        training_dataset=write_copy(tmp_path / "job" / "resume" / LABELLED_FOLDER / "training.jsonl"),
    )  # fmt: skip
    assert finish(plain).error is None
    assert steps(plain) == steps(spec)


def write_copy(path: Path) -> DatasetRef:
    return DatasetRef(uri="gs://bucket/labelled.jsonl", path=str(path), size_bytes=path.stat().st_size)


def kill_while_labelling(spec: RunSpec, answers: Path, count: int) -> list[bytes]:
    """SIGKILL once so many answers are there; returns them."""
    with start(spec) as child:
        while child.poll() is None and (not answers.exists() or answers.read_bytes().count(b"\n") < count):
            time.sleep(POLL_SECONDS)
        child.send_signal(signal.SIGKILL)
    assert child.returncode == -signal.SIGKILL
    return answers.read_bytes().splitlines(keepends=True)


def test_a_run_killed_while_labelling_asks_for_no_answer_twice(
    tiny: BaseWeights, teacher: JudgeModel, tmp_path: Path
) -> None:
    count, sampled = 150, {"generation": {"temperature": 0.5}}
    whole = taught(tiny, tmp_path / "whole", teacher, count=count, teaching=sampled)
    expected = finish(whole)
    assert expected.error is None
    folder = tmp_path / "killed"
    answers = folder / "resume" / ANSWERS_FOLDER / "training.jsonl"
    before = kill_while_labelling(taught(tiny, folder, teacher, count=count, teaching=sampled), answers, 20)
    assert 20 <= len(before) < count
    with answers.open("ab") as file:
        file.write(b'{"line": 3, "cand')  # what a killed writer may leave
    last = taught(tiny, folder, teacher, 2, count=count, teaching=sampled)
    assert finish(last).error is None
    after = answers.read_bytes().splitlines(keepends=True)
    assert after[: len(before)] == [line for line in before if line.endswith(b"\n")][: len(before)]
    asked = Counter((row["line"], row["candidate"]) for row in map(json.loads, after))
    assert len(asked) == count and set(asked.values()) == {1}
    assert any("that an earlier attempt got" in line.message for line in progress(last))
    assert labelled(folder) == labelled(tmp_path / "whole")
    assert steps(last) == steps(whole)


def answer_all(spec: RunSpec, replies: dict[str, dict[str, Any]]) -> RunResult:
    """Run a job whose teacher is elsewhere: the relay's side, as the service has it."""
    folder, seen = Path(spec.run_folder), 0
    with start(spec) as child:
        while child.poll() is None:
            path = folder / ASKED_FILE
            lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
            for line in lines[seen:] if lines and lines[-1].endswith(b"\n") else ():
                asked = RelayRequest.model_validate_json(line)
                text = asked.request["contents"][-1]["parts"][0]["text"]
                reply = replies[text] if text in replies else {"candidates": [said(WORDS[int(text[7])])]}
                outcome = {"error": reply} if "code" in reply else {"response": reply}
                with (folder / ANSWERED_FILE).open("ab") as file:
                    file.write(RelayResponse(number=asked.number, **outcome).model_dump_json().encode() + b"\n")
                seen += 1
            time.sleep(POLL_SECONDS)
    return RunResult.model_validate_json((folder / "result.json").read_bytes())


def said(text: str, reason: str = "STOP") -> dict[str, Any]:
    return {"content": {"role": "model", "parts": [{"text": text}] if text else []}, "finishReason": reason}


def test_answers_that_cannot_be_learned_are_dropped_by_the_line_of_their_prompt(
    tiny: BaseWeights, tmp_path: Path
) -> None:
    rows = [question(number) for number in range(40)]
    for line, text in ((5, "Colour 7?"), (9, "Colour 8?"), (20, "Colour 9?"), (30, "<think>\nhm\n</think>\n\nx")):
        rows[line - 1] = {"prompt": text}
    rows[38] = {"contents": [*question(2)["contents"], {"role": "model", "parts": [{"text": "old"}]}]}
    data = write(tmp_path / "rows.jsonl", rows)
    spec = taught(tiny, tmp_path / "job", None, validation_dataset=None, training_dataset=data)
    replies = {
        "Colour 7?": {"candidates": [said("")]},
        "Colour 8?": {"candidates": [said("and so on", "MAX_TOKENS")]},
        "Colour 9?": {"code": 3, "message": "no such thing"},
        rows[29]["prompt"]: {"candidates": [said("<think>\nlong\n</think>\n\nshort")]},
    }
    result = answer_all(spec, replies)
    assert result.error is None and result.data is not None
    assert result.data.dropped_indices == [5, 9, 20] and result.data.example_count == 37
    empty, cut, refused = result.data.dropped_reasons
    assert "an empty answer" in empty and "a cut answer" in cut and "no such thing" in refused
    found = labelled(tmp_path / "job")
    assert len(found) == 37
    assert (rows[29]["prompt"], "short") in found  # the student's template has no place for thoughts
    assert ("Colour 2?", "old") not in found
    assert any("1 training rows have a reply, which is left out" in line.message for line in progress(spec))


def test_too_many_answers_that_cannot_be_learned_fail_the_job_and_so_does_a_teacher_that_is_gone(
    tiny: BaseWeights, tmp_path: Path
) -> None:
    empty = {f"Colour {number}?": {"candidates": [said("")]} for number in range(2)}
    result = answer_all(taught(tiny, tmp_path / "empty", None, validation_dataset=None), empty)
    assert result.error is not None and result.error["code"] == 3
    assert "6 of 12 rows cannot be used" in result.error["message"] and "line 1" in result.error["message"]
    gone = {f"Colour {number}?": {"code": 7, "message": "no entry"} for number in range(4)}
    result = answer_all(taught(tiny, tmp_path / "gone", None, validation_dataset=None), gone)
    assert result.error is not None and result.error["code"] == 9
    assert "outside/one stopped answering" in result.error["message"] and "no entry" in result.error["message"]


@pytest.mark.slow
def test_a_run_at_token_level_killed_in_any_phase_ends_like_one_never_killed(
    tiny: BaseWeights, teacher: JudgeModel, tmp_path: Path
) -> None:
    token = {"teaching": {"level": "token"}, "count": 140}
    whole = taught(tiny, tmp_path / "whole", teacher, **token)
    expected = finish(whole)
    assert expected.error is None
    kl = [line.step.kl for line in progress(whole) if line.step]
    assert kl[0] is not None and kl[-1] is not None and kl[0] > 1 and kl[-1] < kl[0] / 10
    folder = tmp_path / "killed"
    first = taught(tiny, folder, teacher, 1, **token)
    with start(first) as child:
        while child.poll() is None and not any(p.stat().st_size for p in (folder / "resume").glob("teacher-*")):
            time.sleep(POLL_SECONDS)
        child.send_signal(signal.SIGKILL)
    [values, *_] = sorted((folder / "resume").glob("teacher-*"), key=lambda path: -path.stat().st_size)
    values.write_bytes(values.read_bytes()[:-3])  # a block that was not written to its end
    last = taught(tiny, folder, teacher, 2, **token)
    assert finish(last).error is None
    assert steps(last) == steps(whole)
